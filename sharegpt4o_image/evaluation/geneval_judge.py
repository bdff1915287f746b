# SPDX-License-Identifier: Apache-2.0
"""Detector + colour classifier + rules -> GenEval's verdict on one picture."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image, ImageOps

from sharegpt4o_image.evaluation.clip_colors import ClipColorClassifier
from sharegpt4o_image.evaluation.geneval_prompts import Prompt
from sharegpt4o_image.evaluation.geneval_rules import decide, keep_detections
from sharegpt4o_image.evaluation.geneval_scores import ResultRow
from sharegpt4o_image.evaluation.mask2former_detector import Mask2FormerDetector


class GenEvalJudge(Protocol):
    """Gives the official row of a picture."""

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every score, as JSON."""

    def judge(self, picture: Image.Image, prompt: Prompt, filename: str) -> ResultRow:
        """The verdict on one picture; raises [`UserError`] for a picture that cannot be judged."""


class DetectorJudge:
    """The judge of GenEval: Mask2Former and CLIP, or other weights of them."""

    def __init__(self, detector: Mask2FormerDetector, classifier: ClipColorClassifier) -> None:
        self._detector = detector
        self._classifier = classifier

    @property
    def identity(self) -> dict[str, Any]:
        """Both models."""
        return {"detector": self._detector.identity, "colors": self._classifier.identity}

    def judge(self, picture: Image.Image, prompt: Prompt, filename: str) -> ResultRow:
        """The official row; the classifier is asked only for colours that the prompt names."""
        return judge_picture(picture, prompt, filename, self._detector, self._classifier)


def judge_picture(
    picture: Image.Image,
    prompt: Prompt,
    filename: str,
    detector: Mask2FormerDetector,
    classifier: ClipColorClassifier,
) -> ResultRow:
    """GenEval's verdict on one picture; the classifier is asked only for colours that the prompt names."""
    upright = ImageOps.exif_transpose(picture)
    found = detector.detect(upright)
    detections = {name: [detection for detection, _ in of_class] for name, of_class in found.items()}
    kept = keep_detections(detections, prompt.tag, filename)

    def classify(name: str, indices: Sequence[int]) -> list[str]:
        return classifier.colors_of(upright, name, [found[name][index] for index in indices])

    verdict = decide(prompt, kept, classify)
    return ResultRow.of(filename, prompt, verdict, kept)
