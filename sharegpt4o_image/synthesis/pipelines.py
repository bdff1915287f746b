# SPDX-License-Identifier: Apache-2.0
"""Configuration + taxonomy -> the samples of a run, one generator for each pipeline of the paper."""

import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import openai

from sharegpt4o_image.schema import GeneratedImage, Task, Topic, content_id
from sharegpt4o_image.synthesis.blobs import BlobStore
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.edits import INSTRUCTION_TEMPLATE, is_unchanged, plan_edit, plan_instruction
from sharegpt4o_image.synthesis.images import plan_image
from sharegpt4o_image.synthesis.prompts import PROMPT_TEMPLATE, plan_prompt
from sharegpt4o_image.synthesis.scheduler import Dispatcher, Rejected
from sharegpt4o_image.synthesis.taxonomy import EditTask, Taxonomy

MAX_TASKS_TRIED = 4  # edit tasks offered to the writer for one source before the source is given up


@dataclass(frozen=True)
class Sample:
    """One sample of the plan.

    Args:
        item (`str`): hash of everything that decides what is made; the journal knows the sample by it.
        position (`int`): place among the rows of its task.
        make (callable): asks the teachers; raises what [`Dispatcher.obtain`] raises.
    """

    item: str
    task: Task
    position: int
    make: Callable[[Dispatcher], Awaitable[GeneratedImage]]


@dataclass(frozen=True)
class Pipelines:
    """The plan of a run.

    Args:
        find_source (callable): the finished picture of a text-to-image item, or `None`.
    """

    client: openai.AsyncOpenAI
    config: SynthesisConfig
    taxonomy: Taxonomy
    blobs: BlobStore
    find_source: Callable[[str], GeneratedImage | None]

    # ----------------------------------------------------------------------- prompt-first

    def prompt_first(self) -> Iterator[Sample]:
        """A topic from the taxonomy -> a prompt -> a picture."""
        for position, topic in enumerate(self.taxonomy.draw_topics(self.config.num_topics, self.config.seed)):
            yield Sample(self._prompt_first_item(topic), "text_to_image", position, self._picture_maker(topic))

    def _prompt_first_item(self, topic: Topic) -> str:
        return content_id(
            stage="item",
            template=PROMPT_TEMPLATE,
            models=[self.config.prompt_model, self.config.image_model],
            parameters=self.config.image_params.sent(),
            parents=[topic.id],
        )

    def _picture_maker(self, topic: Topic) -> Callable[[Dispatcher], Awaitable[GeneratedImage]]:
        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            prompt = await dispatcher.obtain(plan_prompt(self.client, self.config, topic))
            return await dispatcher.obtain(plan_image(self.client, self.config, self.blobs, prompt))

        return make

    # ----------------------------------------------------------------------- editing

    def editing(self) -> Iterator[Sample]:
        """A finished text-to-image picture -> an instruction for a drawn task -> the edited picture.

        Every picture is a source once before one is a source again (`turn` 1, 2, ...); a topic without a finished
        picture gives no edit.
        """
        if not self.config.num_topics or not self.taxonomy.edits:
            return
        turns = ((turn, topic) for turn in itertools.count() for topic in self._topics())
        for position, (turn, topic) in enumerate(itertools.islice(turns, self.config.num_edits)):
            source = self.find_source(self._prompt_first_item(topic))
            if source is not None:
                tasks = self._tasks_to_try(source, turn)
                item = self._edit_item(source, tasks, turn)
                make = self._edit_maker(source, tasks, turn)
                yield Sample(item, "text_and_image_to_image", position, make)

    def _topics(self) -> Iterator[Topic]:
        return self.taxonomy.draw_topics(self.config.num_topics, self.config.seed)

    def _tasks_to_try(self, source: GeneratedImage, turn: int) -> list[EditTask]:
        tasks = self.taxonomy.draw_edit_tasks(source.id, self.config.seed)
        first = turn % len(tasks)
        return (tasks[first:] + tasks[:first])[:MAX_TASKS_TRIED]

    def _edit_item(self, source: GeneratedImage, tasks: list[EditTask], turn: int) -> str:
        return content_id(
            stage="item",
            template=INSTRUCTION_TEMPLATE,
            models=[self.config.prompt_model, self.config.image_model],
            parameters={**self.config.edit_params.sent(), "tasks": [task.task for task in tasks], "turn": turn},
            parents=[source.id],
        )

    def _edit_maker(
        self, source: GeneratedImage, tasks: list[EditTask], turn: int
    ) -> Callable[[Dispatcher], Awaitable[GeneratedImage]]:
        async def make(dispatcher: Dispatcher) -> GeneratedImage:
            for task in tasks:
                question = plan_instruction(self.client, self.config, self.blobs, source, task, turn)
                instruction = await dispatcher.obtain(question)
                if instruction is not None:
                    break
            else:
                raise Rejected("no edit task that was tried can be applied to the source")
            edited = await dispatcher.obtain(plan_edit(self.client, self.config, self.blobs, instruction, source))
            if is_unchanged(self.blobs.read(edited.sha256), self.blobs.read(source.sha256)):
                raise Rejected("the edit changed nothing")
            return edited

        return make
