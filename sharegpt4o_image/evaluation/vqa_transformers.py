# SPDX-License-Identifier: Apache-2.0
"""Pictures and questions -> answers of a vision-language model in this process: the likelier of "yes" and "no".

The first position that the model would write decides; how the two words can be spelled there is added up.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor, ProcessorMixin
from transformers.utils.hub import cached_file, extract_commit_hash

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.vqa import CHAT_PROMPT, KeepAnswer, Unanswered, VqaAnswer, VqaQuestion

VQA_MODEL = "Qwen/Qwen3-VL-8B-Instruct"  # our choice; any model that transformers loads for image-text-to-text will do
BATCH_SIZE = 16  # our choice

RULE = "likelier of yes and no at the first position, spellings added up"
SPELLINGS = {word: (word, word.capitalize(), word.upper()) for word in ("yes", "no")}
_WEIGHTS = ("*.safetensors", "*.bin", "*.json")
_HASHED_BYTES = 1 << 20  # of either end of a weight file (our choice); the middle of 16 GB tells no more

_NOT_LOADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)

Conversation = list[dict[str, Any]]


class TransformersVqa:
    """Answers by a checkpoint. Its weights are loaded when the first question comes, its processor at once.

    Args:
        name (`str`): Hub id or folder.
        device (`str`, *optional*): defaults to the GPU where there is one.
        batch_size (`int`): questions at a time.
        revision (`str`): branch or commit on the Hub.
    """

    asks_alone = False

    def __init__(
        self, name: str = VQA_MODEL, device: str | None = None, batch_size: int = BATCH_SIZE, revision: str = "main"
    ) -> None:
        self._name = name
        self._device = device or _own_device()
        self._batch_size = batch_size
        try:
            config = cached_file(name, "config.json", revision=revision)
        except (OSError, ValueError) as error:
            raise _not_loadable(name, error) from None
        commit = extract_commit_hash(config, None)  # None: a folder
        self._revision = commit or revision
        self._model_name = name if commit else Path(name).resolve().name
        self._which = {"revision": commit} if commit else {"sha256": fingerprint(Path(name))}

        self._processor = _load_processor(name, self._revision)
        self._word_ids = [spelling_ids(self._processor.tokenizer, word) for word in SPELLINGS]

    @property
    def identity(self) -> dict[str, Any]:
        """What is to be kept with every answer."""
        return {"kind": "transformers", "model": self._model_name, **self._which, "prompt": CHAT_PROMPT, "rule": RULE}

    def answer(self, questions: Iterable[VqaQuestion], keep: KeepAnswer) -> Unanswered:
        """Answer batch by batch."""
        model: _LoadedModel | None = None
        for batch in _batches(questions, self._batch_size):
            model = model or _LoadedModel(self._name, self._revision, self._device, self._processor, self._word_ids)
            try:
                answers = model.answer(batch, self._model_name)
            except torch.OutOfMemoryError:
                raise UserError(
                    f"{self._name} does not have the memory for {len(batch)} questions at a time; "
                    "lower --vqa-batch-size and run the same command again"
                ) from None
            for question, answer in zip(batch, answers, strict=True):
                keep(question, answer)
        return Unanswered()


class _LoadedModel:
    """A model on its device, and the token ids of its two words."""

    def __init__(self, name: str, revision: str, device: str, processor: Any, word_ids: list[list[int]]) -> None:
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, revision=revision, dtype="auto", output_loading_info=True
            )
        except _NOT_LOADABLE as error:
            raise _not_loadable(name, error) from None
        model, report = loaded
        missing = report["missing_keys"] & dict(model.named_parameters()).keys()
        if missing:
            raise _not_loadable(name, f"it has no {min(missing)}")
        self.model = model.eval().to(device)
        self.processor = processor
        self.word_ids = [torch.tensor(ids, device=device) for ids in word_ids]

    @torch.inference_mode()
    def answer(self, batch: Sequence[VqaQuestion], name: str) -> list[VqaAnswer]:
        """The likelier word of each, and what the model would have written first."""
        inputs = self.processor.apply_chat_template(
            [_conversation(question) for question in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            sanitize_control_tokens=True,
        ).to(self.model.device, self.model.dtype)
        output = self.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        logits = output.logits[0].float()  # (B, vocabulary), of the first position
        words = torch.stack([logits[:, ids].logsumexp(dim=1) for ids in self.word_ids], dim=1)  # (B, 2): yes, no
        if not words.isfinite().all():
            raise UserError(
                f"{name} gives no finite probabilities; load it in another number format, or another model"
            )
        shares = words.softmax(dim=1)[:, 0].tolist()
        written = self.processor.tokenizer.batch_decode(logits.argmax(dim=1, keepdim=True))
        return [
            VqaAnswer("yes" if share > 0.5 else "no", raw, name, {"p_yes": share})
            for share, raw in zip(shares, written, strict=True)
        ]


def _load_processor(name: str, revision: str) -> Any:
    """So early that nothing is drawn for a model that cannot be asked."""
    try:
        processor: Any = AutoProcessor.from_pretrained(name, revision=revision)
    except _NOT_LOADABLE as error:
        raise _not_loadable(name, error) from None
    if not isinstance(processor, ProcessorMixin):
        raise _not_loadable(name, "it takes no pictures")
    if processor.chat_template is None:
        raise _not_loadable(name, "it has no chat template")
    processor.tokenizer.padding_side = "left"
    return processor


def _own_device() -> str:
    """The GPU of this process, where there are GPUs."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def spelling_ids(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word's spellings, with and without a blank in front, where they are single tokens."""
    ids = set()
    for spelling in (*SPELLINGS[word], *(f" {text}" for text in SPELLINGS[word])):
        tokens = tokenizer.encode(spelling, add_special_tokens=False)
        if len(tokens) == 1 and tokens[0] != tokenizer.unk_token_id:
            ids.add(tokens[0])
    if not ids:
        raise UserError(f"the VQA model's tokenizer has no single token for {word!r}; choose another with --vqa")
    return sorted(ids)


def fingerprint(folder: Path) -> str:
    """Tells checkpoints in folders apart: names and sizes of their files, and both ends of each."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HASHED_BYTES))
            file.seek(max(0, size - _HASHED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def _conversation(question: VqaQuestion) -> Conversation:
    text = CHAT_PROMPT.format(question=question.text)
    return [{"role": "user", "content": [{"type": "image", "image": question.crop}, {"type": "text", "text": text}]}]


def _batches(questions: Iterable[VqaQuestion], size: int) -> Iterator[list[VqaQuestion]]:
    iterator = iter(questions)
    while batch := list(islice(iterator, size)):
        yield batch


def _not_loadable(name: str, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split())
    remedy = "give --vqa a Hub id or a folder of an image-text-to-text model"
    if isinstance(error, ImportError) and "torchvision" in reason.lower():
        remedy = "its processor needs torchvision: pip install torchvision"
    return UserError(f"the VQA model {name} cannot be loaded; {remedy}: {reason}")
