# SPDX-License-Identifier: Apache-2.0
"""Sampling: prompt rows -> P image codes a picture, with guidance (paper section 2, upstream README functions)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging

from .batching_janus4o import Batch, CacheSize, check_memory, plan_batches
from .capture_janus4o import PROMPT_BUCKET, CapturedSteps
from .compilation_janus4o import Janus4oCompilationMixin, evaluating
from .decoding_janus4o import CodeDecoder, LaunchedSteps, PromptPrefix, code_logits
from .processing_janus4o import OUTPUT_SIZES, Images, Janus4oProcessor, images_per_prompt, read_picture
from .sampling_janus4o import CodeSampler, Generators, Guidance, sampling_warpers

# B pictures, G prompts of all branches (1 to 3), R rows (the same for every picture), L prompt tokens, P image tokens,
# D width, V codes

DECODE_CHUNK = 4  # pictures decoded at once, so that the decoder's feature maps do not outgrow the cache (our choice)

Prompts = str | list[str]
StepCallback = Callable[[int, Tensor], bool | None]


@dataclass
class GuidanceRows:
    """The prompts of all guidance branches: branch after branch, each with all prompts.

    A branch that guidance gives no weight is left out: `uncond` (l_u) at scale 1, `cond` (l_c) at scale 0, and `part`
    (l_o) without a source or at edit freedom 0.
    """

    inputs_embeds: Tensor  # (G, L, D)
    attention_mask: Tensor  # (G, L)
    branches: tuple[str, ...]

    def pad(self, bucket: int) -> "GuidanceRows":
        """The same, padded on the left to a multiple of `bucket` tokens."""
        length = -(-self.attention_mask.shape[1] // bucket) * bucket
        return GuidanceRows(
            _pad_left(self.inputs_embeds, length), _pad_left(self.attention_mask, length), self.branches
        )


@dataclass(frozen=True)
class ImageRequest:
    """What is asked for: prompts, the source images of each, and what each should lead away from."""

    prompts: list[str]
    sources: list[list[Image.Image]] | None = None
    negative_prompts: list[str] | None = None

    @classmethod
    def check(
        cls, prompt: Prompts, image: Images | None, negative_prompt: Prompts | None, num_images_per_prompt: int
    ) -> "ImageRequest":
        """The arguments of `generate_image`, as lists and read."""
        prompts = _checked_prompts(prompt, num_images_per_prompt)
        given = images_per_prompt(image, len(prompts))
        return cls(
            prompts,
            None if given is None else [[read_picture(one) for one in row] for row in given],
            None if negative_prompt is None else _one_for_each(negative_prompt, len(prompts)),
        )

    def take(self, batch: Batch) -> "ImageRequest":
        """The part of it that a batch draws."""
        parts = (self.prompts, self.sources, self.negative_prompts)
        return ImageRequest(*[part and [part[number] for number in batch.prompts] for part in parts])

    def source_sizes(self, num_images_per_prompt: int) -> list[tuple[int, int] | None]:
        """Width and height of the first source of every picture."""
        rows = self.sources or [[] for _ in self.prompts]
        return [row[0].size if row else None for row in rows for _ in range(num_images_per_prompt)]


class Janus4oGenerationMixin(Janus4oCompilationMixin):
    """`generate_image` and its steps.

    Args:
        share_prompt_from (`int`): tokens from which on the pictures of a prompt read its keys and values in place;
            below, each has a copy, which is faster there (our choice, `docs/performance.md`).
    """

    share_prompt_from: int = 256

    # Longer than other functions are: its signature is the interface, and each argument is described once, here.
    def generate_image(
        self,
        prompt: Prompts,
        image: Images | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        edit_freedom: float | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool = True,
        negative_prompt: Prompts | None = None,
        generator: Generators | None = None,
        output_type: str = "pil",
        processor: Janus4oProcessor | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_size: str = "aspect_ratio",
        progress_bar: bool = False,
        max_batch_size: int | None = None,
        guidance_until: float = 1.0,
    ) -> list[Image.Image] | Tensor:
        """Draw pictures from text, or edit pictures as a text says.

        Args:
            prompt: one prompt or edit instruction, or a list of them.
            image: what to edit: a picture or path; a list (several reference images for one prompt, or one image for
                each of several prompts); or a list of lists, one for each prompt.
            num_images_per_prompt: pictures of each prompt; they follow each other in the result.
            guidance_scale: `s` of the paper; 1 samples the plain conditional distribution, 0 ignores the prompt.
                Defaults to the checkpoint's `config.guidance_scale`, 5.0 for Janus-4o.
            edit_freedom: `s'` of the paper: 0 follows the source's own tokens, larger values let go of them. Defaults
                to the checkpoint's `config.edit_freedom`, 5.0 for Janus-4o.
            temperature: divides the guided logits before sampling.
            top_k: sample among this many likeliest codes; by default among all.
            top_p: sample among the likeliest codes that together have this probability; by default among all.
            do_sample: `False` takes the likeliest code at every step.
            negative_prompt: what the unconditional branch reads instead of nothing: one for all, or one each. It is
                laid out without source images.
            generator: one generator, or one for each picture. The picture of a given generator does not depend on
                what else is in the batch (in fp32; rounding differs between kinds of device, and so do pictures).
            output_type: `"pil"`, `"pt"` ((B, 3, H, W) in [-1, 1]) or `"codes"` ((B, P), int64).
            processor: defaults to the one saved beside the checkpoint.
            callback_on_step_end: called with the step (0 to P - 1) and the codes so far (B, step + 1). Returns `True`
                to stop there: pictures then end in grey, codes are (B, step + 1). `preview_image` draws such codes.
            output_size: for edits and `"pil"`: `"aspect_ratio"` gives the picture its source's proportions (the bars
                that made the source square are cut off), `"source"` also its size, `"model"` leaves the square.
            progress_bar: show one, on stderr.
            max_batch_size: pictures drawn at once, by default all. More are drawn in several batches, prompts of
                similar length together; the callback is called in each.
            guidance_until: share of the codes that are drawn with guidance; the later ones do without the
                unconditional branch, which saves a row. Changes the picture (`docs/performance.md` has scores).

        Returns:
            a list of pictures, or a tensor, see `output_type`.

        Raises:
            ValueError: naming the argument, its value and what it may be; or weights that are offloaded.
        """
        if output_type not in ("pil", "pt", "codes"):
            raise ValueError(f"output_type is {output_type!r}; choose 'pil', 'pt' or 'codes'.")
        self._check_weights()
        if output_size not in OUTPUT_SIZES:
            raise ValueError(f"output_size is {output_size!r}; choose one of {', '.join(map(repr, OUTPUT_SIZES))}.")
        guidance = Guidance(
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
            self.config.edit_freedom if edit_freedom is None else edit_freedom,
            guidance_until,
        )
        warpers = sampling_warpers(temperature, top_k, top_p) if do_sample else None
        request = ImageRequest.check(prompt, image, negative_prompt, num_images_per_prompt)
        processor = processor or self.processor
        sampler = CodeSampler(len(request.prompts) * num_images_per_prompt, warpers, generator, self.device)
        drawn: dict[int, Tensor] = {}
        pictures = PictureDecoder(self._decode, self.device)
        for batch in plan_batches([len(text) for text in request.prompts], num_images_per_prompt, max_batch_size):
            numbers = batch.numbers(num_images_per_prompt)
            with torch.inference_mode(), evaluating(self):
                rows = self._guidance_rows(processor, request.take(batch), guidance)
                codes = self._sample_codes(
                    rows, len(batch.pictures), guidance, sampler.of(numbers), callback_on_step_end, progress_bar
                )
            codes_BP = codes.clone()  # a normal tensor, which may be trained on
            drawn |= zip(numbers, codes_BP, strict=True)
            if output_type != "codes":
                pictures.add(numbers, codes_BP)
        codes_BP = _stack_codes(drawn)
        if output_type == "codes":
            return codes_BP
        pixels_BCHW = pictures.finish()
        if output_type == "pt":
            return pixels_BCHW
        sizes = request.source_sizes(num_images_per_prompt)
        return [
            picture if size is None else processor.restore_size(picture, size, output_size)
            for picture, size in zip(processor.to_pil(pixels_BCHW), sizes, strict=True)
        ]

    @property
    def processor(self) -> Janus4oProcessor:
        """The processor saved beside the checkpoint; loaded on first use."""
        if getattr(self, "_processor", None) is None:
            name = self.config._name_or_path
            if not name:
                raise ValueError("This model was not loaded from a checkpoint; pass processor=Janus4oProcessor(...).")
            # A class that came with the checkpoint was trusted to run; the installed one says nothing about its code.
            is_remote = type(self).__module__.startswith("transformers_modules.")
            where: dict[str, Any] = getattr(self, "_loaded_from", {})
            self._processor = Janus4oProcessor.from_pretrained(name, trust_remote_code=is_remote, **where)
        return self._processor

    def _check_weights(self) -> None:
        offloaded = next((name for name, parameter in self.named_parameters() if parameter.is_meta), None)
        if offloaded is not None:
            raise ValueError(
                f"The weight {offloaded} is offloaded to the disk or host memory and would be read anew for every "
                "code; load the model with a device_map of devices that hold it."
            )

    # ------------------------------------------------------------------ steps

    def _decode(self, codes_BP: Tensor) -> Tensor:
        """Codes -> pixels (B, 3, H, W), a few pictures at a time; what was stopped early ends in grey."""
        is_whole = codes_BP.shape[1] == self.config.num_image_tokens
        decode = self._decode_codes if is_whole else self.preview_image  # codes that were drawn need no check
        return torch.cat([decode(part) for part in codes_BP.split(DECODE_CHUNK)])

    def _guidance_rows(
        self,
        processor: Janus4oProcessor,
        request: "ImageRequest",
        guidance: "Guidance",
    ) -> GuidanceRows:
        """Embed the prompts, once for each guidance branch that has a weight."""
        inputs = processor.prepare_image_generation(request.prompts, request.sources).to(self.device)
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
        pixels = inputs.get("source_pixel_values")
        embeds, masks = {}, {}
        if guidance.scale != 0:
            embeds["cond"], masks["cond"] = self.embed_prompt(input_ids, pixels), mask
        if guidance.scale != 0 and guidance.edit_freedom != 0 and pixels is not None:
            embeds["part"], masks["part"] = self.drop_source_codes(embeds["cond"], input_ids), mask
        if guidance.scale != 1:
            null_ids, masks["uncond"] = processor.unconditional_ids(input_ids, mask), mask
            if request.negative_prompts is not None:
                negative = processor.prepare_image_generation(request.negative_prompts).to(self.device)
                null_ids, masks["uncond"] = negative["input_ids"], negative["attention_mask"]
            embeds["uncond"] = self.get_input_embeddings()(null_ids)
        length = max(e.shape[1] for e in embeds.values())
        embeds_GLD = torch.cat([_pad_left(e, length) for e in embeds.values()])
        mask_GL = torch.cat([_pad_left(m, length) for m in masks.values()])
        return GuidanceRows(embeds_GLD, mask_GL, tuple(embeds))

    def _sample_codes(
        self,
        rows: GuidanceRows,
        num_pictures: int,
        guidance: "Guidance",
        sampler: "CodeSampler",
        callback: StepCallback | None,
        progress_bar: bool,
    ) -> Tensor:
        """The sampling loop: (B, P) codes, or fewer when the callback stops it."""
        branches, num_codes = rows.branches, self.config.num_image_tokens
        num_guided = guidance.num_guided(branches, num_codes)
        with self._decoding(rows, num_pictures, num_guided < num_codes) as (logits_RV, decode):
            num_pictures = len(logits_RV) // len(branches)
            codes_BP = torch.empty(num_pictures, num_codes, dtype=torch.long, device=logits_RV.device)
            for position in logging.tqdm(range(num_codes), desc="Drawing", disable=not progress_bar):
                logits = dict(zip(branches, logits_RV.chunk(len(branches)), strict=True))
                codes_BP[:, position] = sampler.sample_token(guidance.guide(logits))
                if callback is not None and callback(position, codes_BP[:, : position + 1].clone()):
                    return codes_BP[:, : position + 1]
                if position + 1 == num_guided < num_codes:
                    branches = branches[:-1]
                    decode.keep(len(branches))
                if position + 1 < num_codes:
                    logits_RV = decode(codes_BP[:, position], position)
        return codes_BP

    @contextmanager
    def _decoding(
        self, rows: GuidanceRows, num_pictures: int, drops_branch: bool
    ) -> Iterator[tuple[Tensor, LaunchedSteps | CapturedSteps]]:
        """Prompts that were read: logits (R, V) of the first codes, and the steps to the others."""
        num_branches = len(rows.branches)
        if self._uses_graphs():
            with self._captures.held(self._decoding_modules()):
                needed = self._cache_size(rows.pad(PROMPT_BUCKET), num_pictures).captured()
                steps = self._captured_steps(needed, num_branches, len(rows.attention_mask), drops_branch)
                if steps is not None:
                    rows = rows.pad(steps.size.prefix_length)
                    hidden_GD, prefix = self.prefill(rows.inputs_embeds, rows.attention_mask)
                    steps.load(prefix, len(hidden_GD) // num_branches, num_pictures)
                    yield self._first_logits(hidden_GD, num_pictures), steps
                    return
        size = self._cache_size(rows, num_pictures)
        check_memory(
            lambda number: self._num_bytes(self._cache_size(rows, num_pictures, number)),
            size.num_rows // num_branches,
            self.device,
        )
        hidden_GD, prefix = self.prefill(rows.inputs_embeds, rows.attention_mask)
        decoder = CodeDecoder(self.model.language_model, size, prefix)
        yield self._first_logits(hidden_GD, num_pictures), LaunchedSteps(decoder, num_branches, self.decode_step)

    def _cache_size(self, rows: GuidanceRows, num_pictures: int, batch_size: int | None = None) -> CacheSize:
        """Of so many pictures of each prompt, or of `batch_size` pictures in all, as `plan_batches` would cut them."""
        num_prefixes, length = rows.attention_mask.shape
        if batch_size is not None:
            num_prefixes = len(rows.branches) * max(1, batch_size // num_pictures)
            num_pictures = min(batch_size, num_pictures)
        can_share = num_pictures > 1 and self.device.type in ("cpu", "cuda")  # where `attend` has its kernels
        is_shared = can_share and length >= self.share_prompt_from
        return CacheSize(num_prefixes, length, num_pictures, self.config.num_image_tokens, is_shared)

    def _num_bytes(self, size: CacheSize) -> int:
        """Of the keys and values."""
        return size.num_bytes(self.config.text_config, self.get_input_embeddings().weight.element_size())

    def _first_logits(self, hidden_GD: Tensor, num_pictures: int) -> Tensor:
        return code_logits(self.model.generation_head, hidden_GD).repeat_interleave(num_pictures, 0)

    def prefill(self, embeds_GLD: Tensor, mask_GL: Tensor) -> tuple[Tensor, PromptPrefix]:
        """Run the prompts; the hidden states (G, D) that predict code 0, and the prompts' keys and values."""
        cache = DynamicCache()
        outputs = self.model.language_model(
            inputs_embeds=embeds_GLD,
            attention_mask=mask_GL,
            position_ids=positions_of(mask_GL),
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1], PromptPrefix(cache, mask_GL)

    def decode_step(self, codes_B: Tensor, num_branches: int, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Codes (B,) of the pictures -> logits (R, V) in fp32 of the next ones, branch after branch.

        `run` takes embeddings (R, D) through the language model, over what it has read.
        """
        embeds_BD = self.embed_codes(codes_B).to(self.get_input_embeddings().weight.dtype)
        hidden_RD = run(embeds_BD.repeat(num_branches, 1))
        return code_logits(self.model.generation_head, hidden_RD).to(codes_B.device)


class PictureDecoder:
    """Decodes the pictures of every batch; on a GPU beside the drawing of the next one, on a stream of its own.

    Args:
        decode: codes (B, n) -> pixels (B, 3, H, W), without waiting for the device.
        device: where the codes are.
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], device: torch.device):
        self._decode, self._device = decode, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pixels: dict[int, Tensor] = {}

    def add(self, numbers: list[int], codes_BP: Tensor) -> None:
        """Decode these pictures, which have those numbers in the result."""
        if self._stream is None:
            self._pixels |= zip(numbers, self._decode(codes_BP), strict=True)
            return
        drawing = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(drawing)
        codes_BP.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            pixels_BCHW = self._decode(codes_BP)
        pixels_BCHW.record_stream(drawing)
        self._pixels |= zip(numbers, pixels_BCHW, strict=True)

    def finish(self) -> Tensor:
        """All pixels (B, 3, H, W), in the order of their numbers."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return torch.stack([self._pixels[number] for number in range(len(self._pixels))])


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position of every token in its own row, left padding not counted: (B, L)."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def _checked_prompts(prompt: Prompts, num_images_per_prompt: int) -> list[str]:
    if not isinstance(prompt, str | list | tuple):
        raise ValueError(f"prompt is a {type(prompt).__name__}; give a string or a list of strings.")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
        raise ValueError("A prompt is empty; say what to draw.")
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; it must be 1 or more.")
    return prompts


def _one_for_each(negative_prompt: Prompts, num_prompts: int) -> list[str]:
    if isinstance(negative_prompt, str):
        return [negative_prompt] * num_prompts
    if len(negative_prompt) != num_prompts:
        raise ValueError(
            f"Got {len(negative_prompt)} negative prompts for {num_prompts} prompts; give one, or one for each."
        )
    return list(negative_prompt)


def _stack_codes(drawn: dict[int, Tensor]) -> Tensor:
    """Codes by picture number -> (B, n)."""
    lengths = sorted({len(codes) for codes in drawn.values()})
    if len(lengths) > 1:
        raise ValueError(
            f"The callback stopped batches after {lengths[0]} and {lengths[-1]} codes; stop all at the same step."
        )
    return torch.stack([drawn[number] for number in range(len(drawn))])


def _pad_left(rows: Tensor, length: int) -> Tensor:
    """Zeros before the tokens of (B, L) or (B, L, D)."""
    missing = length - rows.shape[1]
    padding = (0, 0, missing, 0) if rows.dim() == 3 else (missing, 0)
    return torch.nn.functional.pad(rows, padding)


__all__ = ["Janus4oGenerationMixin"]
