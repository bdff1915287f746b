# SPDX-License-Identifier: Apache-2.0
"""Configuration + taxonomy -> the samples of a run, one generator for each pipeline of the paper (section 2.1)."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharegpt4o_image.schema import GeneratedImage, Pipeline, Prompt, Task, Topic, content_id
from sharegpt4o_image.synthesis.answers import InvalidAnswer
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.documents import CONTENT_TEMPLATE, LAYOUT_TEMPLATE, plan_content, plan_layout
from sharegpt4o_image.synthesis.gates import BenchmarkPrompts
from sharegpt4o_image.synthesis.images import original_of, plan_image
from sharegpt4o_image.synthesis.photos import InvalidPhoto, Photo, iter_photos, open_source
from sharegpt4o_image.synthesis.prompts import DESCRIPTION_TEMPLATE, PROMPT_TEMPLATE, plan_description, plan_prompt
from sharegpt4o_image.synthesis.scheduler import Dispatcher, Rejected
from sharegpt4o_image.synthesis.taxonomy import Taxonomy

log = logging.getLogger(__name__)

Make = Callable[[Dispatcher], Awaitable[GeneratedImage]]


@dataclass(frozen=True)
class Sample:
    """One sample of the plan.

    Args:
        item (`str`): hash of everything that decides what is made; the journal knows the sample by it.
        position (`int`): place among the samples of its pipeline.
        make (callable): asks the teachers; raises what [`Dispatcher.obtain`] raises.
    """

    item: str
    pipeline: Pipeline
    task: Task
    position: int
    make: Make


@dataclass(frozen=True)
class TextToImage:
    """The three pipelines whose samples are a prompt and a picture.

    Args:
        benchmarks ([`BenchmarkPrompts`]): what no prompt may repeat; a prompt that does costs no picture.
    """

    config: SynthesisConfig
    taxonomy: Taxonomy
    blobs: BlobStore
    benchmarks: BenchmarkPrompts

    # ----------------------------------------------------------------------- prompt-first

    def prompt_first(self) -> Iterator[Sample]:
        """A topic from the taxonomy -> a prompt -> a picture."""
        for position, topic in enumerate(self.taxonomy.draw_topics(self.config.num_topics, self.config.seed)):
            item = self.prompt_first_item(topic)
            yield Sample(item, "prompt_first", "text_to_image", position, self._from_topic(topic))

    def prompt_first_item(self, topic: Topic) -> str:
        """The sample of a topic."""
        return self._item([PROMPT_TEMPLATE], [topic.id])

    def _from_topic(self, topic: Topic) -> Make:
        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            prompt = await dispatcher.obtain(plan_prompt(self.config, topic))
            return await self._draw(prompt, dispatcher)

        return make

    # ----------------------------------------------------------------------- image-first

    def image_first(self) -> Iterator[Sample]:
        """A photograph -> its description -> that photograph, or a picture made anew."""
        if not self.config.num_described:
            return
        assert self.config.photos is not None
        position = -1
        for position, photo in enumerate(itertools.islice(iter_photos(self.config.photos), self.config.num_described)):
            item = self._item([DESCRIPTION_TEMPLATE], [photo_id(photo)], target=self.config.image_first_target)
            yield Sample(item, "image_first", "text_to_image", position, self._from_photo(photo))
        if position + 1 < self.config.num_described:
            log.warning("photos has %d pictures, num_described asks for %d", position + 1, self.config.num_described)

    def _from_photo(self, photo: Photo) -> Make:
        unread = [photo]  # its bytes go as soon as they are in the run

        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            try:
                source = await asyncio.to_thread(open_source, unread.pop(), self.blobs)
            except InvalidPhoto as fault:
                raise Rejected(str(fault)) from fault
            prompt = await dispatcher.obtain(plan_description(self.config, source))
            if self.config.image_first_target == "regenerated":
                return await self._draw(prompt, dispatcher)
            self.check(prompt)
            try:
                return await asyncio.to_thread(original_of, prompt, self.blobs, self.config.license)
            except InvalidAnswer as fault:
                raise Rejected(str(fault)) from fault

        return make

    # ----------------------------------------------------------------------- documents

    def documents(self) -> Iterator[Sample]:
        """A document type and subject -> its text -> a prompt for its look -> a picture."""
        for position, topic in enumerate(self.taxonomy.draw_documents(self.config.num_documents, self.config.seed)):
            item = self._item([CONTENT_TEMPLATE, LAYOUT_TEMPLATE], [topic.id])
            yield Sample(item, "document", "text_to_image", position, self._from_subject(topic))

    def _from_subject(self, topic: Topic) -> Make:
        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            text = await dispatcher.obtain(plan_content(self.config, topic))
            prompt = await dispatcher.obtain(plan_layout(self.config, topic, text))
            return await self._draw(prompt, dispatcher)

        return make

    # ----------------------------------------------------------------------- all of them

    async def _draw(self, prompt: Prompt, dispatcher: Dispatcher) -> GeneratedImage:
        self.check(prompt)
        return await dispatcher.obtain(plan_image(self.config, self.blobs, prompt))

    def check(self, prompt: Prompt) -> None:
        """Reject a prompt, or an edit instruction, that repeats a benchmark's."""
        if (fault := self.benchmarks.find(prompt.text)) is not None:
            raise Rejected(fault)

    def _item(self, templates: list[str], parents: list[str], **decisive: Any) -> str:
        return item_id(self.config, templates, self.config.image_params.sent(), parents, **decisive)


def check_inputs(config: SynthesisConfig) -> BenchmarkPrompts:
    """Refuse, before anything is asked, photographs and benchmark prompts that cannot be read; gives the latter."""
    if config.photos is not None and (config.num_described or config.edit_sources == "photos"):
        next(iter_photos(config.photos))
    return BenchmarkPrompts([Path(path) for path in config.gates.benchmark_prompts])


def photo_id(photo: Photo) -> str:
    """What a photograph is known by: its bytes, or the name of one that cannot be read."""
    return content_id(photo=photo.sha256 or photo.name)


def item_id(
    config: SynthesisConfig, templates: list[str], params: dict[str, str | int], parents: list[str], **decisive: Any
) -> str:
    """The hash of all that decides a sample."""
    return content_id(
        stage="item",
        templates=templates,
        models=[config.prompt_model, config.image_model],
        prompt_parameters=config.prompt_params.sent(),
        parameters=params,
        parents=parents,
        **decisive,
    )
