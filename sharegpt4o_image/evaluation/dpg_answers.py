# SPDX-License-Identifier: Apache-2.0
"""DPG-Bench's pictures and questions -> the answers of a VQA model, each asked for once.

Answers are known by the pixels of a picture, the question and the identity of the model. Children of failed questions
are asked, too, as the official script does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import Share
from sharegpt4o_image.evaluation.dpg_items import DpgBench
from sharegpt4o_image.evaluation.dpg_pictures import (
    RESOLUTION,
    UnusablePicture,
    hashes_of_singles,
    picture_requests,
    read_crops,
)
from sharegpt4o_image.evaluation.dpg_questions import Item
from sharegpt4o_image.evaluation.dpg_run import SINGLES_FOLDER, Advance, PictureSource, SeenPictures, counted, look_at
from sharegpt4o_image.evaluation.dpg_scores import NO, YES
from sharegpt4o_image.evaluation.drawing import missing_pictures
from sharegpt4o_image.evaluation.verdict_store import VerdictStore
from sharegpt4o_image.evaluation.vqa import Unanswered, Vqa, VqaAnswer, VqaQuestion
from sharegpt4o_image.schema import content_id

VERDICTS_FOLDER, STORE_NAME = "verdicts", "answers"

# Answers without a single yes or no after which a run stops instead of paying for more (our choice).
MAX_ANSWERS_WITHOUT_WORD = 20


@dataclass(frozen=True)
class Answered:
    """All answers there are.

    Args:
        by_item (`dict`): item id -> picture -> question -> what the store holds of it.
        reasons (`dict`): item id -> why the first of its answers is missing.
        new_answers (`int`): of this invocation.
        notes (`dict`): numbers of the invocation, such as dollars spent.
    """

    by_item: Mapping[str, list[dict[int, dict[str, Any]]]]
    reasons: Mapping[str, str]
    new_answers: int
    notes: Mapping[str, Any] = field(default_factory=dict)

    def texts(self) -> dict[str, list[dict[str, str]]]:
        """In the form that is scored and stored."""
        return {
            item: [{str(number): kept["answer"] for number, kept in picture.items()} for picture in pictures]
            for item, pictures in self.by_item.items()
        }

    def models(self) -> list[str]:
        """Names of the models that answered."""
        return sorted(
            {kept["model"] for pictures in self.by_item.values() for picture in pictures for kept in picture.values()}
        )


def answer_all(
    bench: DpgBench, source: PictureSource, seen: SeenPictures, vqa: Vqa, run_dir: Path, share: Share
) -> Answered:
    """Ask the VQA model what it has not answered yet, and read all its answers."""
    identity = content_id(vqa=vqa.identity)
    folder = run_dir / VERDICTS_FOLDER
    unanswered, new_answers = Unanswered(), 0
    if share.is_main or not vqa.asks_alone:
        items = bench.items if vqa.asks_alone else share.of(bench.items)
        with VerdictStore(folder, STORE_NAME, share.rank) as store:
            pending = count_pending(items, seen.hashes, identity, store)
            keeper = _Keeper(store)
            if pending:
                with counted("answers", pending, share.is_main) as advance:
                    keeper.advance = advance
                    unanswered = vqa.answer(_pending(bench, source, items, seen, identity, store), keeper.keep)
            keeper.finish()
            new_answers = keeper.num_kept
    if not vqa.asks_alone:  # else the others are done: a barrier of hours would be taken for a crash
        share.wait()
    with VerdictStore(folder, STORE_NAME, share.rank) as store:
        by_item, reasons = _collect(bench, seen, identity, store, unanswered)
    return Answered(by_item, reasons, new_answers, unanswered.notes)


def count_pending(
    items: Sequence[Item], hashes: Mapping[str, Sequence[str]], identity: str, store: VerdictStore
) -> int:
    """Questions, counted once for equal pictures, that have no answer yet."""
    keys = {
        answer_key(picture, question.text, identity)
        for item in items
        for picture in hashes.get(item.id, ())
        for question in item.questions
    }
    return sum(store.find(key) is None for key in keys)


def answer_key(picture: str, question: str, identity: str) -> str:
    """What decides an answer: pixels, question, VQA model."""
    return content_id(picture=picture, question=question, vqa=identity)


def _pending(
    bench: DpgBench,
    source: PictureSource,
    items: Sequence[Item],
    seen: SeenPictures,
    identity: str,
    store: VerdictStore,
) -> Iterator[VqaQuestion]:
    """The questions without an answer; the pictures of one item are in memory at a time."""
    asked: set[str] = set()
    for item in items:
        wanted = []
        for index, picture in enumerate(seen.hashes.get(item.id, ())):
            for question in item.questions:
                key = answer_key(picture, question.text, identity)
                if key not in asked and store.find(key) is None:
                    asked.add(key)
                    wanted.append((key, index, question))
        if wanted:
            try:
                crops = read_crops(seen.files[item.id], source.resolution, bench.num_pictures).pictures
            except UnusablePicture as fault:
                raise UserError(f"{fault}: it changed meanwhile; run the same command again") from None
            for key, index, question in wanted:
                yield VqaQuestion(key, item.id, index + 1, question.number, crops[index], question.text)


@dataclass(frozen=True)
class WorkLeft:
    """What a run would still do."""

    pictures: int
    answers: int


def count_work(
    bench: DpgBench, vqa: Vqa, run_dir: Path, images: Path | None, resolution: int | None, seed: int
) -> WorkLeft:
    """What is left to draw and to ask; pictures that are not there yet have all their questions to come."""
    if images is not None:
        hashes = look_at(bench, PictureSource(images, resolution or RESOLUTION)).hashes
        num_missing = 0
    else:
        singles = run_dir / SINGLES_FOLDER
        missing = missing_pictures(singles, picture_requests(bench.prompts, bench.num_pictures, seed))
        num_missing = len(missing)
        hashes = hashes_of_singles(bench.item_ids, singles, bench.num_pictures, resolution)
    identity = content_id(vqa=vqa.identity)
    num_unseen = sum(
        len(item.questions) * bench.num_pictures for item in bench.items if images is None and item.id not in hashes
    )
    if not (run_dir / VERDICTS_FOLDER).is_dir():  # a store would make it
        with TemporaryDirectory() as folder, VerdictStore(Path(folder), STORE_NAME) as store:
            return WorkLeft(num_missing, num_unseen + count_pending(bench.items, hashes, identity, store))
    with VerdictStore(run_dir / VERDICTS_FOLDER, STORE_NAME) as store:
        return WorkLeft(num_missing, num_unseen + count_pending(bench.items, hashes, identity, store))


class _Keeper:
    """Keeps answers, once there is a sign that the model understands what it is asked."""

    def __init__(self, store: VerdictStore) -> None:
        self.advance: Advance = lambda: None
        self.num_kept = 0
        self._store = store
        self._doubtful: list[tuple[VqaQuestion, VqaAnswer]] | None = []

    def keep(self, question: VqaQuestion, answer: VqaAnswer) -> None:
        """Keep an answer; stops the run where the first ones are all neither yes nor no."""
        self.advance()
        if self._doubtful is None:
            self._write(question, answer)
            return
        self._doubtful.append((question, answer))
        if answer.text.strip().lower() in (YES, NO):
            self.finish()
        elif len(self._doubtful) >= MAX_ANSWERS_WITHOUT_WORD:
            raise UserError(
                f"the first {len(self._doubtful)} answers of {answer.model} are neither yes nor no "
                f"({question.text!r}: {answer.raw[:80]!r}); choose another VQA model, or one that answers in English"
            )

    def finish(self) -> None:
        """Write what is still in doubt."""
        doubtful, self._doubtful = self._doubtful or [], None
        for question, answer in doubtful:
            self._write(question, answer)

    def _write(self, question: VqaQuestion, answer: VqaAnswer) -> None:
        self.num_kept += 1
        kept = {"answer": answer.text, "raw": answer.raw, "model": answer.model, **answer.details}
        asked = {"item": question.item, "picture": question.picture, "question": question.text}
        self._store.keep(question.key, {**asked, **kept, "kept_at": datetime.now(UTC).isoformat(timespec="seconds")})


def _collect(
    bench: DpgBench, seen: SeenPictures, identity: str, store: VerdictStore, unanswered: Unanswered
) -> tuple[dict[str, list[dict[int, dict[str, Any]]]], dict[str, str]]:
    by_item: dict[str, list[dict[int, dict[str, Any]]]] = {}
    reasons = dict(seen.faults)
    for item in bench.items:
        by_item[item.id], missing = [], []
        for picture, digest in enumerate(seen.hashes.get(item.id, ()), start=1):
            kept = {}
            for question in item.questions:
                key = answer_key(digest, question.text, identity)
                verdict = store.find(key)
                if verdict is not None:
                    kept[question.number] = verdict
                    continue
                why = unanswered.reasons.get(key) or unanswered.stopped or "no answer; run the same command again"
                missing.append(f"question {question.number} of picture {picture}: {why}")
            by_item[item.id].append(kept)
        if missing:
            reasons[item.id] = f"{len(missing)} answers missing, {missing[0]}"
    return by_item, reasons
