# SPDX-License-Identifier: Apache-2.0
"""The journal of a run as a source of rows; a run that is still going on may be read."""

import json
from collections.abc import Iterator
from pathlib import Path

from sharegpt4o_image.builders.row_source import RowFault, RowPlan, SourceFacts
from sharegpt4o_image.schema import TASKS, GeneratedImage, Record, RejectedRecord, content_id
from sharegpt4o_image.synthesis.blobs import MissingBlob
from sharegpt4o_image.synthesis.journal import Item, Journal
from sharegpt4o_image.synthesis.records import record_of
from sharegpt4o_image.synthesis.status import SETTINGS_FACT, TAXONOMY_FACT


class RunSource:
    """Text-to-image rows first, then edits, each in the order of the run's plan; negatives come last.

    Args:
        run_dir (`Path`): what `synthesize` wrote.
        is_rejected (`bool`, *optional*, defaults to `False`): give the pictures that quality gates refused, as the
            rows of a set of their own.
    """

    has_looked = False

    def __init__(self, run_dir: Path, is_rejected: bool = False):
        self.row: type[Record] = RejectedRecord if is_rejected else Record
        self._journal = Journal.open(run_dir)
        self.folder: Path | None = run_dir
        self._name = run_dir.resolve().name
        self._is_rejected = is_rejected

    def plan(self) -> Iterator[RowPlan]:
        """Every sample that has a picture."""
        if not self._is_rejected:
            yield from self._plan(is_rejected=False)
        yield from self._plan(is_rejected=True)

    def load(self, plan: RowPlan) -> Record:
        """The row of a sample; its bytes are those that the teacher sent."""
        [name] = plan.locator
        item = self._journal.find_item(name)
        if item is None or item.image is None:
            raise RowFault("the run has changed while it was packed")
        try:
            record = record_of(item.image, plan.task, self._journal.blobs)
        except MissingBlob as fault:
            raise RowFault("a picture is gone from the run", item.image.prompt.text) from fault
        return record if item.reason is None else RejectedRecord(**dict(record), reject_reason=item.reason)

    def facts(self) -> SourceFacts:
        """What the requests of the run came to."""
        return facts_of_run(self._journal, self._name)

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _plan(self, is_rejected: bool) -> Iterator[RowPlan]:
        for task in TASKS:
            for item in self._journal.iter_items(task, is_rejected):
                if item.image is not None:
                    yield self._plan_of(item, item.image, is_rejected and not self._is_rejected)

    def _plan_of(self, item: Item, image: GeneratedImage, is_negative: bool) -> RowPlan:
        pictures = (*(source.sha256 for source in image.sources), image.sha256)
        return RowPlan(
            id=image.id,
            task=item.task,
            digest=content_id(image=image.model_dump(), reason=item.reason),
            num_bytes=sum(self._journal.blobs.size_of(picture) for picture in pictures),
            location=f"sample {item.item}",
            locator=(item.item,),
            pictures=pictures,
            is_negative=is_negative,
        )


def facts_of_run(journal: Journal, name: str) -> SourceFacts:
    """What a journal says of a run as a whole."""
    requests: dict[str, dict[str, dict[str, int]]] = {}
    for stage, model, status, count in journal.count_requests():
        requests.setdefault(stage, {}).setdefault(model, {})[status] = count
    return SourceFacts(
        kind="run",
        name=name,
        attempts=dict(journal.count_attempts()),
        rejections=dict(journal.count_rejections()),
        spent_usd=journal.spent_usd(),
        possibly_spent_usd=journal.reserved_usd(),
        requests=requests,
        settings=json.loads(journal.read_fact(SETTINGS_FACT) or "{}"),
        taxonomy=journal.read_fact(TAXONOMY_FACT),
    )
