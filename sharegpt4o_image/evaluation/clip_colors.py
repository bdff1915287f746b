# SPDX-License-Identifier: Apache-2.0
"""A picture and the masks of detections -> CLIP's colour of each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sharegpt4o_image.evaluation.geneval_crops import crop_of
from sharegpt4o_image.evaluation.geneval_prompts import COLORS
from sharegpt4o_image.evaluation.geneval_rules import Detection
from sharegpt4o_image.evaluation.pretrained import load_complete, short_name, told_as_user_error

if TYPE_CHECKING:
    from sharegpt4o_image.evaluation.mask2former_detector import Mask

# djghosh13/geneval@af4902f, evaluation/evaluate_images.py: open_clip's ViT-L-14 of OpenAI, the same weights
CLIP = "openai/clip-vit-large-patch14"
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class ClipColorClassifier:
    """Names the colour, of GenEval's ten, whose texts are nearest to a crop."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, revision: str | None = None) -> None:
        """Classify with `model`, which stays on its device; GenEval ran it in half precision, here it is as given.

        `revision` is the commit of the model's files or the digest of its weights, kept for `identity`.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.revision = revision
        self._text_embeddings: dict[str, torch.Tensor] = {}  # class name -> (10, D)

    @classmethod
    def from_pretrained(cls, name: str = CLIP, device: str = "cpu", revision: str = "main") -> "ClipColorClassifier":
        """The classifier of a Hub id or a folder, in float32."""
        with told_as_user_error(f"The colour classifier {name}"):
            model, known_as = load_complete(CLIPModel, name, revision)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=known_as)
        return cls(model.to(device), tokenizer, known_as)

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every score."""
        config = self.model.config
        return {
            "model": short_name(config._name_or_path),
            "revision": self.revision,
            "crops": "grey outside the mask, cut to the box",
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @torch.inference_mode()
    def colors_of(
        self, picture: Image.Image, class_name: str, detections: Sequence[tuple[Detection, "Mask"]]
    ) -> list[str]:
        """The colour of each detection of a class.

        Args:
            picture: with its EXIF orientation applied.
            class_name: stands in the texts.
            detections: at least one.
        """
        edge = self.model.config.vision_config.image_size
        crops = [crop_of(picture, mask, detection.box) for detection, mask in detections]
        pixel_values = torch.stack([pixel_values_of(crop, edge) for crop in crops]).to(
            self.model.device, self.model.dtype
        )
        features: Any = self.model.get_image_features(pixel_values=pixel_values)
        image_embeddings = F.normalize(features.pooler_output, dim=-1)  # (N, D)
        cosines = image_embeddings @ self.text_embeddings(class_name).T  # (N, 10)
        return [COLORS[index] for index in cosines.argmax(dim=1).tolist()]

    @torch.inference_mode()
    def text_embeddings(self, class_name: str) -> torch.Tensor:
        """(10, D): for each colour the mean of its texts' unit embeddings, of unit length again."""
        if class_name not in self._text_embeddings:
            texts = [template.format(color=color, name=class_name) for color in COLORS for template in TEMPLATES]
            inputs = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
            features: Any = self.model.get_text_features(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
            embeddings = F.normalize(features.pooler_output, dim=-1).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._text_embeddings[class_name] = F.normalize(embeddings.mean(dim=1), dim=-1)
        return self._text_embeddings[class_name]


def pixel_values_of(crop: Image.Image, edge: int) -> torch.Tensor:
    """CLIP's input (3, edge, edge): the short side to `edge`, bicubic, the middle cut out, normalized.

    The middle is rounded half to even, as in torchvision, which open_clip uses. transformers' processor rounds down:
    where 3, 7, 11, ... pixels are too many, it cuts one pixel further left or above.
    """
    short = min(crop.size)
    width, height = (int(edge * side / short) for side in crop.size)
    resized = crop.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, upper = round((width - edge) / 2), round((height - edge) / 2)
    middle = np.array(resized.crop((left, upper, left + edge, upper + edge)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (torch.from_numpy(middle).permute(2, 0, 1) / 255 - mean) / std
