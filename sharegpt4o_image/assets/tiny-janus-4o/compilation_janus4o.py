# SPDX-License-Identifier: Apache-2.0
"""Which decode steps a model captures as CUDA graphs, ahead or on the way, and when it lets go of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.utils import logging

from .batching_janus4o import CacheSize, check_memory, free_bytes
from .capture_janus4o import (
    KEPT_SHAPES,
    PROMPT_BUCKET,
    CapturedSteps,
    CaptureReport,
    Captures,
    FixedDecoder,
    can_be_captured,
    compiled_layers,
)  # fmt: skip
from .decoding_janus4o import fused_layers

logger = logging.get_logger(__name__)


class Janus4oCompilationMixin:
    """`compile_generation`, and captures on first use, for a model that has a `decode_step` (`generation_janus4o.py`).

    Args:
        uses_cuda_graph (`bool`, *optional*): draw by decode steps that are captured as CUDA graphs, see
            `compile_generation`. By default where the model is on a GPU; where capturing fails, a warning says so and
            the kernels are launched one by one, as they are for models with adapters or hooks, and where memory is
            short. `True` raises where capturing fails, `False` never captures.
    """

    uses_cuda_graph: bool | None = None

    def compile_generation(
        self,
        batch_sizes: Sequence[int] = (1,),
        prompt_tokens: int = PROMPT_BUCKET,
        num_branches: int = 2,
        joins_kernels: bool = True,
    ) -> list[CaptureReport]:
        """Make the decode step ready for some batch sizes, as CUDA graphs; later calls use the smallest with room.

        Without it, `generate_image` captures on first use and keeps the last three shapes. What is captured here
        stays, with the memory of its keys and values, until `release_generation()`, or until the weights change or
        move.

        Args:
            batch_sizes: pictures drawn at once. From `share_prompt_from` tokens on, pictures of one prompt.
            prompt_tokens: of the longest prompt, with its source images; rounded up to a multiple of 64, as each
                prompt is when it is drawn.
            num_branches: guidance branches: 2 for drawings, and for edits with `edit_freedom=0`; 3 for other edits.
            joins_kernels: let `torch.compile` join the layers' small kernels; takes seconds more.

        Returns:
            what was captured, with the time it took; nothing for what had been captured before.

        Raises:
            ValueError: the model is not on a GPU, has adapters, or there is no room; with the remedy.
        """
        self._check_compilation(batch_sizes, prompt_tokens, num_branches)
        length = -(-prompt_tokens // PROMPT_BUCKET) * PROMPT_BUCKET
        reports = []

        def size_of(batch_size: int) -> CacheSize:
            is_shared = batch_size > 1 and length >= self.share_prompt_from
            return CacheSize(num_branches, length, batch_size, self.config.num_image_tokens, is_shared).captured()

        with torch.inference_mode(), evaluating(self), self._captures.held(self._decoding_modules()):
            for batch_size in sorted(set(batch_sizes)):
                size = size_of(batch_size)
                if self._captures.has_ahead(size, num_branches):
                    continue
                check_memory(
                    lambda number: self._captured_bytes(size_of(number), size_of(number).num_prefixes),
                    batch_size,
                    self.device,
                )
                steps = self._capture(size, num_branches, joins_kernels)
                self._captures.add(steps, is_ahead=True)
                reports.append(CaptureReport(batch_size, length, num_branches, steps.seconds, self._num_bytes(size)))
        if self.uses_cuda_graph is False:
            self.uses_cuda_graph = None
        return reports

    def release_generation(self) -> None:
        """Let go of all captured steps and their memory."""
        with self._captures.held([]):
            self._captures.clear()

    def _check_compilation(self, batch_sizes: Sequence[int], prompt_tokens: int, num_branches: int) -> None:
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes is {batch_sizes!r}; give one number or more, each 1 or more.")
        if prompt_tokens < 1 or num_branches not in (1, 2, 3):
            raise ValueError(
                f"prompt_tokens is {prompt_tokens} and num_branches {num_branches}; give 1 or more, and 1, 2 or 3."
            )
        language_model, *others = self._step_modules()
        if not can_be_captured(language_model, others):
            raise ValueError("The model has adapters or hooks, which cannot be captured; merge or remove them.")

    @property
    def _captures(self) -> Captures:
        captures: Captures = self.__dict__.setdefault("_generation_captures", Captures())
        return captures

    def _decoding_modules(self) -> list[torch.nn.Module]:
        """What a decode step runs, its weights where they will stay."""
        fused_layers(self.model.language_model, 1)
        return self._step_modules()

    def _step_modules(self) -> list[torch.nn.Module]:
        inner = self.model
        return [inner.language_model, inner.generation_embeddings, inner.generation_aligner, inner.generation_head]

    def _uses_graphs(self) -> bool:
        if self.uses_cuda_graph is False or self._captures.is_mine or torch.is_autocast_enabled(self.device.type):
            return False
        if not (self.uses_cuda_graph or self.device.type == "cuda"):
            return False
        language_model, *others = self._step_modules()
        return can_be_captured(language_model, others)

    def _captured_steps(
        self, size: CacheSize, num_branches: int, num_prompts: int, drops_branch: bool
    ) -> CapturedSteps | None:
        """Steps with room for this, captured now if there are none; `None` where there is no memory for them, or
        where capturing was not asked for and does not work.

        Args:
            size: what the steps need.
            num_branches: guidance branches.
            num_prompts: of all branches, which are read before.
            drops_branch: whether later steps do without the last branch.
        """
        steps = self._captures.find(size, num_branches)
        try:
            if steps is None:
                self._captures.make_room()
                if not self._has_room_to_capture(size, num_prompts):
                    return None
                steps = self._capture(size, num_branches, joins_kernels=False)
                self._captures.add(steps, is_ahead=False)
            if drops_branch:
                steps.capture(num_branches - 1)
        except torch.OutOfMemoryError:
            if self.uses_cuda_graph:
                raise
            logger.warning_once("There is no memory to capture the decode step, and drawing is slower.")
            return None
        except RuntimeError as error:
            if self.uses_cuda_graph:
                raise
            logger.warning_once(f"The decode step is not captured as a CUDA graph and drawing is slower: {error}")
            self.uses_cuda_graph = False
            return None
        return steps

    def _has_room_to_capture(self, size: CacheSize, num_prompts: int) -> bool:
        needed = self._captured_bytes(size, num_prompts)
        for num_kept in (KEPT_SHAPES - 1, 0):
            self._captures.make_room(num_kept)
            free = free_bytes(self.device)
            if free is None or needed <= free:
                return True
        return False

    def _captured_bytes(self, size: CacheSize, num_prompts: int) -> int:
        """Of keys and values; those of the prompts (of all branches) take room twice while they are read."""
        prompts = CacheSize(num_prompts, size.prefix_length, 1, 0, False)
        return self._num_bytes(size) + self._num_bytes(prompts)

    def _capture(self, size: CacheSize, num_branches: int, joins_kernels: bool) -> CapturedSteps:
        layers: Sequence[Any] = fused_layers(self.model.language_model, size.num_rows)
        if joins_kernels:
            layers = compiled_layers(layers)
        decoder = FixedDecoder(self.model.language_model, size, layers)
        steps = CapturedSteps(decoder, num_branches, self.decode_step)
        steps.capture(num_branches)
        return steps

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        """As the parent's (`to`, `cuda`, `half`); what was captured with weights that move or change is let go of."""
        apply = super()._apply  # type: ignore[misc]  # of the model that this is mixed into
        if self._captures.is_empty:
            return apply(function, recurse)
        with self._captures.held(self._step_modules()):  # not while another thread draws
            result = apply(function, recurse)
        with self._captures.held(self._step_modules()):  # forgets what no longer holds
            return result


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a while: with gradient checkpointing, a training model keeps no cache."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


__all__ = ["Janus4oCompilationMixin", "evaluating"]
