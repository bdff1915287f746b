# SPDX-License-Identifier: Apache-2.0
"""The official VQA model of DPG-Bench as a worker: JSON lines on stdin -> JSON lines with answers on stdout.

    /envs/mplug/bin/python mplug_worker.py [--device gpu|cpu]

Stands alone: it is run by the Python of an environment that has modelscope and its `multi-modal` dependencies, not
this package. Written from what the official script does (`compute_dpg_bench.py` of TencentQQGYLab/ELLA@3c228f1: the
pipeline's text, for the picture and the question as they are) and tried only with a stand-in for modelscope.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MODEL = "damo/mplug_visual-question-answering_coco_large_en"


def main() -> None:
    """Answer until stdin ends."""
    parser = argparse.ArgumentParser(description="Answer questions about pictures by mPLUG.")
    parser.add_argument("--model", default=MODEL, help="id on ModelScope, or a folder")
    parser.add_argument("--device", default="gpu", help="gpu or cpu")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    ask = load(options.model, options.device)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        answer = ask(question["image_path"], question["question"])
        answers.write(json.dumps({**question, "answer": answer, "model": options.model}) + "\n")
        answers.flush()


def load(model: str, device: str) -> Callable[[str, str], str]:
    """Path of a picture and a question -> the model's text."""
    from modelscope.pipelines import pipeline
    from modelscope.utils.constant import Tasks
    from PIL import Image

    vqa = pipeline(Tasks.visual_question_answering, model=model, device=device)

    def ask(path: str, question: str) -> str:
        with Image.open(path) as picture:
            result: dict[str, Any] = vqa({"image": picture.convert("RGB"), "question": question})
        text: str = result["text"]
        return text

    return ask


if __name__ == "__main__":
    main()
