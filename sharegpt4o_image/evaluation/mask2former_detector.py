# SPDX-License-Identifier: Apache-2.0
"""A picture -> what Mask2Former finds on it: per GenEval class, boxes, scores and masks as large as the picture.

Preprocessing and post-processing are mmdet 2's, which GenEval ran, not transformers': its image processor rounds sizes
up to a multiple of 32 and smooths, and its post-processing makes masks of 384 x 384 and paints them over each other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import Mask2FormerForUniversalSegmentation

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.geneval_prompts import CLASS_NAMES
from sharegpt4o_image.evaluation.geneval_rules import Detection
from sharegpt4o_image.evaluation.openmmlab_converter import load_openmmlab, sha256_of
from sharegpt4o_image.evaluation.pretrained import load_complete, short_name, told_as_user_error

# Architecture and data of the detector that GenEval names, other weights: OpenMMLab trained its own.
DETECTOR = "facebook/mask2former-swin-small-coco-instance"

# mmdet 2.x, configs/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py and the configs that it derives from
MAX_LONG_EDGE = 1333
MAX_SHORT_EDGE = 800
SIZE_DIVISOR = 32
PAD_VALUE = 128
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
MAX_DETECTIONS = 100  # pairs of a query and a class
_MASK_SCORE_EPSILON = 1e-6

Mask = NDArray[np.bool_]
Size = tuple[int, int]  # height, width
Found = dict[str, list[tuple[Detection, Mask]]]  # by class name, in COCO's order; of a class, best class score first


@dataclass(frozen=True)
class Sizes:
    """Of a picture: as it came, resized, and then padded to what the model sees."""

    original: Size
    resized: Size
    padded: Size


class Mask2FormerDetector:
    """Finds COCO's 80 things."""

    def __init__(
        self,
        model: Mask2FormerForUniversalSegmentation,
        max_long_edge: int = MAX_LONG_EDGE,
        max_short_edge: int = MAX_SHORT_EDGE,
        revision: str | None = None,
    ) -> None:
        """Look with `model`, which stays on its device.

        Args:
            model: for COCO instances.
            max_long_edge: of pictures as the model sees them; another than GenEval's makes a variant.
            max_short_edge: the same.
            revision: the commit of the model's files or the digest of its weights, kept for `identity`.
        """
        if model.config.num_labels != len(CLASS_NAMES):
            raise UserError(
                f"The detector knows {model.config.num_labels} classes, but GenEval takes COCO's {len(CLASS_NAMES)} "
                f"things by their number; give a model for COCO instances, such as {DETECTOR}."
            )
        self.model = model.eval()
        self.max_long_edge = max_long_edge
        self.max_short_edge = max_short_edge
        self.revision = revision

    @classmethod
    def from_pretrained(
        cls, name: str = DETECTOR, device: str = "cpu", revision: str = "main"
    ) -> "Mask2FormerDetector":
        """The detector of a Hub id, a folder, or GenEval's own `.pth` of OpenMMLab, in float32."""
        if name.endswith(".pth"):
            converted: Any = load_openmmlab(Path(name))
            return cls(converted.to(device), revision=sha256_of(Path(name)))
        with told_as_user_error(f"The detector {name}"):
            model, known_as = load_complete(Mask2FormerForUniversalSegmentation, name, revision)
        return cls(model.to(device), revision=known_as)

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every score: which model, and how pictures and masks are treated."""
        config = self.model.config
        return {
            "model": short_name(config._name_or_path),
            "revision": self.revision,
            "max_long_edge": self.max_long_edge,
            "max_short_edge": self.max_short_edge,
            "preprocessing": (
                f"EXIF applied, RGB, bilinear without antialias, rounded to whole values, padded with {PAD_VALUE} "
                f"to a multiple of {SIZE_DIVISOR}, then normalized"
            ),
            "postprocessing": f"mmdet 2: best {MAX_DETECTIONS} of queries x classes, mask = resized logit > 0",
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> Found:
        """All detections on a picture, however low their scores, with its EXIF orientation applied."""
        pixel_values, sizes = preprocess(picture, self.max_long_edge, self.max_short_edge)
        output = self.model(pixel_values=pixel_values.to(self.model.device))
        return post_process(output.class_queries_logits[0], output.masks_queries_logits[0], sizes)


# ------------------------------------------------------------------ before the model


def preprocess(
    picture: Image.Image, max_long_edge: int = MAX_LONG_EDGE, max_short_edge: int = MAX_SHORT_EDGE
) -> tuple[torch.Tensor, Sizes]:
    """Pixel values (1, 3, H, W), and the sizes that lead back to the picture.

    Resized values are rounded to whole ones. OpenCV, which GenEval ran, has coarser weights: of its values about one
    in eight is another, by 1 of 255.
    """
    rgb = ImageOps.exif_transpose(picture).convert("RGB")
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float()  # (3, H, W)
    original = (rgb.height, rgb.width)
    resized = resized_size(original, max_long_edge, max_short_edge)
    if min(resized) < 1:
        raise UserError(f"a picture of {rgb.width}x{rgb.height} is too thin for the detector")
    height, width = ((edge + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR for edge in resized)
    padding = (0, width - resized[1], 0, height - resized[0])  # left, right, top, bottom
    padded = F.pad(_resize(pixels, resized).round(), padding, value=PAD_VALUE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return ((padded - mean) / std)[None], Sizes(original, resized, (height, width))


def resized_size(size: Size, max_long_edge: int = MAX_LONG_EDGE, max_short_edge: int = MAX_SHORT_EDGE) -> Size:
    """The largest size of the same shape within both edges, each side rounded as mmcv does; may enlarge."""
    scale = min(max_long_edge / max(size), max_short_edge / min(size))
    height, width = (int(edge * scale + 0.5) for edge in size)
    return height, width


def _resize(planes: torch.Tensor, size: Size) -> torch.Tensor:  # (N, h, w) -> (N, *size)
    return F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False, antialias=False)[0]


# ------------------------------------------------------------------ after the model


def post_process(class_logits: torch.Tensor, mask_logits: torch.Tensor, sizes: Sizes) -> Found:
    """The best pairs of a query and a class: a query may be found as several classes, with one mask.

    Args:
        class_logits: (Q, 81); the last is "nothing".
        mask_logits: (Q, h, w), of any size.
        sizes: of the picture.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]  # (Q, 80)
    class_scores, pairs = probabilities.flatten().topk(MAX_DETECTIONS)
    num_classes = probabilities.shape[1]
    masks: dict[int, tuple[Mask, float]] = {}  # by query
    found: Found = {}
    for class_score, pair in zip(class_scores.tolist(), pairs.tolist(), strict=True):
        query, label = divmod(pair, num_classes)
        if query not in masks:
            masks[query] = _mask_and_score(mask_logits[query].float(), sizes)
        mask, mask_score = masks[query]
        detection = Detection(tight_box(mask), float(np.float32(class_score) * np.float32(mask_score)))
        found.setdefault(CLASS_NAMES[label], []).append((detection, mask))
    return {name: found[name] for name in CLASS_NAMES if name in found}


def _mask_and_score(logits: torch.Tensor, sizes: Sizes) -> tuple[Mask, float]:
    """A query's mask of the picture's size, and the mean probability within it."""
    height, width = sizes.resized
    on_input = _resize(logits[None], sizes.padded)[:, :height, :width]
    on_picture = _resize(on_input, sizes.original)[0]
    mask = on_picture > 0
    score = (on_picture.sigmoid() * mask).sum() / (mask.sum() + _MASK_SCORE_EPSILON)
    return mask.cpu().numpy(), score.item()


def tight_box(mask: Mask) -> tuple[float, float, float, float]:
    """`(x1, y1, x2, y2)`, the right and lower edge one behind the last pixel; zeros for an empty mask."""
    if not mask.any():
        return 0.0, 0.0, 0.0, 0.0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
