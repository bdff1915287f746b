# SPDX-License-Identifier: Apache-2.0
"""Configuration + taxonomy + sources -> the edits of a run (paper section 2.2).

An edit starts from a record of the run, from a photograph, or from the edit before it in its chain.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharegpt4o_image.schema import GeneratedImage, SourceImage, content_id
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.edits import (
    INSTRUCTION_TEMPLATE,
    TWO_SOURCES_TEMPLATE,
    Sources,
    plan_control,
    plan_edit,
    plan_instruction,
)
from sharegpt4o_image.synthesis.journal import Journal
from sharegpt4o_image.synthesis.photos import InvalidPhoto, Photo, iter_photos, open_source
from sharegpt4o_image.synthesis.pipelines import Make, Sample, TextToImage, item_id, photo_id
from sharegpt4o_image.synthesis.scheduler import Dispatcher, Rejected, Unfinished
from sharegpt4o_image.synthesis.taxonomy import EditTask, Taxonomy

MAX_TASKS_TRIED = 4  # edit tasks offered to the writer for one source before the source is given up (our choice)


@dataclass(frozen=True)
class Origin:
    """What an edit starts from, before it is known whether it exists.

    Args:
        id (`str`): known beforehand, so that the edit's own id is.
        open (callable): the picture; raises [`Rejected`] or [`Unfinished`] where there is none.
    """

    id: str
    open: Callable[[], SourceImage]


@dataclass(frozen=True)
class Editing:
    """The editing pipeline; `gates` is the hash of those that its sources are decided by.

    Every source is used once before one is used again (`turn` 1, 2, ...). Of `edit_turns` edits in a row, each starts
    from the result of the one before: those of depth 0 are made first, then those of depth 1, and so on.
    """

    config: SynthesisConfig
    taxonomy: Taxonomy
    journal: Journal
    records: TextToImage
    gates: str

    @property
    def blobs(self) -> BlobStore:
        """Where the pictures are."""
        return self.journal.blobs

    def edits(self, depth: int) -> Iterator[Sample]:
        """The edits that are the `depth`-th of their chain, 0 being the first."""
        if not self.taxonomy.edits:
            return
        for chain, (turn, origins) in enumerate(self._starts()):
            position = chain * self.config.edit_turns + depth
            if chain * self.config.edit_turns >= self.config.num_edits:
                return
            if position >= self.config.num_edits:
                continue
            for level in range(depth):
                origins = (self._result_of(self._item(origins, turn, level)),)
            item = self._item(origins, turn, depth)
            make = self._edit_maker(origins, turn, depth)
            yield Sample(item, "editing", "text_and_image_to_image", position, make)

    # ----------------------------------------------------------------------- sources

    def _starts(self) -> Iterator[tuple[int, tuple[Origin, ...]]]:
        """Endless: the turn, and what the chain starts from."""
        for turn in itertools.count():
            previous: Origin | None = None
            for origin in self._photographs() if self.config.edit_sources == "photos" else self._pictures():
                yield turn, (origin, previous) if previous and self._takes_two(origin, turn) else (origin,)
                previous = origin
            if previous is None:
                return

    def _takes_two(self, origin: Origin, turn: int) -> bool:
        dice = random.Random(f"two sources {self.config.seed} {turn} {origin.id}")
        return dice.random() < self.config.two_source_share

    def _pictures(self) -> Iterator[Origin]:
        for topic in self.taxonomy.draw_topics(self.config.num_topics, self.config.seed):
            yield self._result_of(self.records.prompt_first_item(topic))

    def _photographs(self) -> Iterator[Origin]:
        assert self.config.photos is not None
        for photo in iter_photos(self.config.photos):
            yield Origin(photo_id(photo), self._photo_opener(photo))

    def _photo_opener(self, photo: Photo) -> Callable[[], SourceImage]:
        unread = [photo]  # its bytes go as soon as they are in the run
        read: list[SourceImage] = []

        def open_photo() -> SourceImage:
            try:
                if not read:
                    read.append(open_source(unread[0], self.blobs))
                    unread.clear()
                return read[0]
            except InvalidPhoto as fault:
                raise Rejected(str(fault)) from fault

        return open_photo

    def _result_of(self, item: str) -> Origin:
        def open_result() -> SourceImage:
            found = self.journal.find_item(item)
            if found is None or found.gates != self.gates:
                raise Unfinished("the source is not finished")
            if not found.is_record or found.image is None:
                raise Rejected("the source was rejected")
            return found.image.as_source()

        return Origin(item, open_result)

    # ----------------------------------------------------------------------- edits

    def _item(self, origins: tuple[Origin, ...], turn: int, depth: int) -> str:
        template = INSTRUCTION_TEMPLATE if len(origins) == 1 else TWO_SOURCES_TEMPLATE
        return item_id(
            self.config,
            [template],
            self.config.edit_params.sent(),
            [origin.id for origin in origins],
            tasks=[task.task for task in self._tasks_to_try(origins, turn, depth)],
            turn=turn,
            depth=depth,
        )

    def _tasks_to_try(self, origins: tuple[Origin, ...], turn: int, depth: int) -> list[EditTask]:
        source = content_id(origin=origins[0].id, depth=depth)
        tasks = self.taxonomy.draw_edit_tasks(source, self.config.seed)
        first = turn % len(tasks)
        return (tasks[first:] + tasks[:first])[:MAX_TASKS_TRIED]

    def _edit_maker(self, origins: tuple[Origin, ...], turn: int, depth: int) -> Make:
        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            sources = tuple(origin.open() for origin in origins)
            for task in self._tasks_to_try(origins, turn, depth):
                edited = await self._edit(sources, task, turn, dispatcher)
                if edited is not None:
                    return edited
            raise Rejected("no edit task that was tried can be applied to the source")

        return make

    async def _edit(
        self, sources: Sources, task: EditTask, turn: int, dispatcher: Dispatcher
    ) -> GeneratedImage | None:
        """The edit, or `None` when the task cannot be applied."""
        control_usd = 0.0
        if task.prepare is not None:
            control, control_usd = await dispatcher.obtain(plan_control(self.config, self.blobs, sources[0], task))
            sources = (control, *sources[1:])
        instruction = await dispatcher.obtain(plan_instruction(self.config, sources, task, turn))
        if instruction is None:
            return None
        self.records.check(instruction)
        edited = await dispatcher.obtain(plan_edit(self.config, self.blobs, instruction, sources))
        return edited.model_copy(update={"cost_usd": edited.cost_usd + control_usd})
