# SPDX-License-Identifier: Apache-2.0
"""Processor of Janus-4o: prompts and source images -> token ids and pixels, for generation and for editing."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from transformers import BatchFeature, JanusProcessor

# B batch, L tokens, P image tokens (576), N source images, H W pixels

ImageInput = str | Path | Image.Image
Images = ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]]

USER_TAG = "<|User|>"
ASSISTANT_TAG = "<|Assistant|>"

# How a picture that is not square becomes square: `pad` adds grey bars (upstream), `center_crop` cuts the longer side
# (Janus-Pro's report, for what is to be generated).
GEOMETRIES = ("pad", "center_crop")
# What an edited picture is returned as: the model's square, the square without its bars, or that in the source's size.
OUTPUT_SIZES = ("model", "aspect_ratio", "source")

# Modes whose pictures can be shown; "I" and "I;16" hold 16 bits a pixel.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B", "I;16L")

MIN_SOURCE_SIDE = 8  # pixels; our choice: in a smaller picture there is nothing to edit

# The conversation format of the original code (`conversation.py`, "deepseek"), for text answers.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>\n' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '\n\n' if message['role'] == 'user' else eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)


class Janus4oProcessor(JanusProcessor):
    """[`JanusProcessor`] with the two sequence layouts of Janus-4o (upstream `train_janus.py`, README functions):

        text to image:  BOS <|User|>: prompt \\n\\n<|Assistant|>: boi
        editing:        BOS <|User|>:  [boi P*image eoi] [boi P*pad eoi] instruction \\n\\n<|Assistant|>: boi

    The first source block takes the vision tower's embeddings, the second the source's own codes. Text generation
    (`processor(text=..., images=...)`) is as in the parent class.
    """

    def __init__(  # noqa: D417 (the others are described by the parent)
        self,
        image_processor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        use_default_system_prompt: bool = False,
        num_image_tokens: int = 576,
        geometry: str = "pad",
        **kwargs: Any,
    ):
        r"""
        Args:
            use_default_system_prompt (`bool`, *optional*, defaults to `False`):
                Put Janus's system prompt before texts.
            num_image_tokens (`int`, *optional*, defaults to 576):
                P: image tokens of one picture.
            geometry (`str`, *optional*, defaults to `"pad"`):
                How pictures become square: `"pad"` with grey bars, as upstream, or `"center_crop"`. Kept with the
                checkpoint: pictures must be prepared as they were in training.
        """
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry is {geometry!r}; choose {' or '.join(map(repr, GEOMETRIES))}.")
        self.geometry = geometry
        super().__init__(
            image_processor,
            tokenizer,
            chat_template=chat_template or CHAT_TEMPLATE,
            use_default_system_prompt=use_default_system_prompt,
            num_image_tokens=num_image_tokens,
            **kwargs,
        )

    def __call__(self, text: Any = None, images: Any = None, **kwargs: Any) -> BatchFeature:
        """As [`JanusProcessor.__call__`], but `generation_mode="image"` lays prompts out as training does.

        For text, each `<image_placeholder>` in `text` stands for one of `images`. In image mode `text` is prompts or
        edit instructions and `images` their sources, see [`prepare_image_generation`]; what a chat template has
        formatted already is left to the parent.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        is_formatted = any(one.startswith(USER_TAG) for one in texts)
        if kwargs.get("generation_mode") == "image" and not is_formatted:
            return self.prepare_image_generation(texts, images_per_prompt(images, len(texts)))
        pictures = [] if images is None else _flatten(images)
        are_pictures = all(isinstance(one, str | Path | Image.Image) for one in pictures)
        num_placeholders = sum(one.count(self.image_token) for one in texts)
        if texts and are_pictures and num_placeholders != len(pictures):
            raise ValueError(
                f"The text has {num_placeholders} image placeholders ({self.image_token}) and {len(pictures)} images "
                "were given; give one image for each."
            )
        squares = [
            self.pad_to_square(read_picture(one)) if isinstance(one, Path | Image.Image) else one for one in pictures
        ]
        return super().__call__(text=text, images=squares or None, **kwargs)

    # ------------------------------------------------------------------ prompts

    def prepare_image_generation(
        self, prompts: list[str], images: list[list[ImageInput]] | None = None
    ) -> BatchFeature:
        """Turn prompts, and the source images of each, into model inputs.

        Args:
            prompts: B prompts or edit instructions. Special tokens written in them become plain text.
            images: for each prompt its source images (possibly none); `None` for text to image.

        Returns:
            `input_ids` and `attention_mask` (B, L), left-padded, and, when there are sources, `source_pixel_values`
            (N, 3, H, W) in [-1, 1], all sources in order of the rows.
        """
        if not prompts:
            raise ValueError("There is no prompt; say what to draw.")
        sources = images if images is not None else [[] for _ in prompts]
        if len(sources) != len(prompts):
            raise ValueError(
                f"Got {len(sources)} lists of source images for {len(prompts)} prompts; give one list each."
            )
        rows = [self.image_generation_ids(p, len(s)) for p, s in zip(prompts, sources, strict=True)]
        batch = self.pad_left(rows)
        flat = [image for row in sources for image in row]
        if flat:
            batch["source_pixel_values"] = self.source_pixels(flat)  # (N, 3, H, W)
        return batch

    def image_generation_ids(self, prompt: str, num_sources: int) -> list[int]:
        """Token ids of one prompt with room for its sources, from BOS to the boi that the target codes follow."""
        tokenizer = self.tokenizer
        boi, eoi, image, pad = tokenizer.convert_tokens_to_ids(
            [self.image_start_token, self.image_end_token, self.image_token, tokenizer.pad_token]
        )
        user, assistant = tokenizer.convert_tokens_to_ids([USER_TAG, ASSISTANT_TAG])
        source_block = [boi, *[image] * self.num_image_tokens, eoi, boi, *[pad] * self.num_image_tokens, eoi]
        if num_sources:
            # The content begins with the image tags, so stripping it leaves the instruction's leading spaces.
            content = [*self._plain_ids(": "), *source_block * num_sources, *self._plain_ids(f"{prompt.rstrip()}\n\n")]
        else:
            content = self._plain_ids(f": {prompt.strip()}\n\n")
        return [tokenizer.bos_token_id, user, *content, assistant, *self._plain_ids(":"), boi]

    def pad_left(self, rows: list[list[int]]) -> BatchFeature:
        """Rows of token ids -> `input_ids` and `attention_mask` (B, L), padded on the left."""
        length = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), length), self.tokenizer.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, length - len(row) :] = torch.tensor(row)
            attention_mask[i, length - len(row) :] = 1
        return BatchFeature({"input_ids": input_ids, "attention_mask": attention_mask})

    def unconditional_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The l_u rows (paper 2): every token but the first (BOS) and the last (boi) becomes pad.

        `attention_mask` (B, L) only tells where each row begins: the pads that replace conditions are attended to.
        """
        is_first = attention_mask.cumsum(-1) == 1
        keep = is_first & attention_mask.bool()
        keep[:, -1] = True
        return input_ids.masked_fill(~keep, self.tokenizer.pad_token_id)

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids of `text` in which control tokens are spelled out as ordinary text.

        They are cut in two before the tokenizer sees them: whether it would split them itself depends on flags that
        released tokenizers set differently.
        """
        pieces = self._control_tokens.sub(lambda match: f"{match[0][0]}\0{match[0][1:]}", text.replace("\0", ""))
        return [
            token
            for piece in pieces.split("\0")
            for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        ]

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        """Every string that the tokenizer turns into a token with a meaning of its own."""
        tokenizer = self.tokenizer
        tokens = {self.image_token, self.image_start_token, self.image_end_token, USER_TAG, ASSISTANT_TAG}
        tokens |= {tokenizer.pad_token, *tokenizer.all_special_tokens}
        return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))

    # ------------------------------------------------------------------ pictures

    def source_pixels(self, images: Sequence[ImageInput]) -> Tensor:
        """Pictures -> pixel values (N, 3, H, W) in [-1, 1], made square as `geometry` says, and resized."""
        make_square = self.pad_to_square if self.geometry == "pad" else self.crop_to_square
        squares = [make_square(read_picture(image)) for image in images]
        return self.image_processor(images=squares, return_tensors="pt")["pixel_values"]

    def pad_to_square(self, picture: Image.Image) -> Image.Image:
        """Resize the longer side to the model's, and add grey bars.

        As the original `VLMImageProcessor`, which cuts the shorter side to an integer where transformers 5.23 rounds
        it: for two pictures in three that is another picture.
        """
        side = self.image_processor.size["height"]
        left, top, right, bottom = self.content_box(picture.size)
        content = picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
        square = Image.new("RGB", (side, side), self._background_color)
        square.paste(content, (left, top))
        return square

    def crop_to_square(self, picture: Image.Image) -> Image.Image:
        """Cut the longer side to the shorter one's length, around the middle, and resize to the model's side."""
        side, shorter = self.image_processor.size["height"], min(picture.size)
        if picture.width != picture.height:
            left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
            picture = picture.crop((left, top, left + shorter, top + shorter))
        return picture.resize((side, side), Image.Resampling.BICUBIC)

    def content_box(self, source_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Where a picture of that width and height lies in the padded square: left, top, right, bottom."""
        side, min_side = self.image_processor.size["height"], self.image_processor.min_size
        width, height = (int(length / max(source_size) * side) for length in source_size)
        if min(width, height) < min_side:
            raise ValueError(
                f"The source image has {source_size[0]} x {source_size[1]} pixels: at the model's {side} pixels its "
                f"shorter side would have {min(width, height)}, and {min_side} are needed; crop it."
            )
        left, top = (side - width) // 2, (side - height) // 2
        return left, top, left + width, top + height

    @property
    def _background_color(self) -> tuple[int, ...]:
        return tuple(int(mean * 255) for mean in self.image_processor.image_mean)

    def to_pil(self, pixels_BCHW: Tensor) -> list[Image.Image]:
        """Pixel values in [-1, 1] -> 8-bit pictures, rounded down as upstream does."""
        levels = ((pixels_BCHW.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in levels]

    def restore_size(self, picture: Image.Image, source_size: tuple[int, int], output_size: str) -> Image.Image:
        """Give an edited picture its source's proportions back.

        Args:
            picture: a square picture, as the model draws it.
            source_size: width and height of its source.
            output_size: `"model"` leaves it alone, `"aspect_ratio"` cuts the bars off that `"pad"` added, `"source"`
                then resizes it to the source's size (to its shorter side, where the source was cropped).
        """
        if output_size == "model":
            return picture
        width, height = source_size
        if self.geometry == "center_crop":
            width = height = min(source_size)
        content = picture.crop(self.content_box(source_size)) if self.geometry == "pad" else picture
        return content if output_size == "aspect_ratio" else content.resize((width, height), Image.Resampling.LANCZOS)


# ------------------------------------------------------------------ what callers give


def read_picture(image: ImageInput) -> Image.Image:
    """A picture or path -> an RGB picture: upright, transparency over white, 16-bit levels scaled to 8.

    Raises:
        ValueError: if it cannot be read, is animated or is too small.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image, "The source image")
    if not isinstance(image, str | Path):
        raise ValueError(f"A source image is a {type(image).__name__}; give a PIL image or a path.")
    try:
        with Image.open(image) as opened:
            return _to_rgb(opened, f"The source image {image}")
    except FileNotFoundError as error:
        raise ValueError(f"There is no picture {image}; check the path.") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read as a picture ({error}); give a PNG, JPEG or WebP file.") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if min(image.size) < MIN_SOURCE_SIDE:
        raise ValueError(
            f"{name} has {image.width} x {image.height} pixels; at least {MIN_SOURCE_SIDE} x {MIN_SOURCE_SIDE} "
            "are needed."
        )
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview as second frame
        raise ValueError(f"{name} is animated: it has {num_frames} frames; give a picture with 1.")
    if image.mode not in _MODES:
        raise ValueError(f"{name} has the mode {image.mode!r}; known are {', '.join(_MODES)}.")
    try:
        image.load()
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        upright = image if is_upright else ImageOps.exif_transpose(image)  # which copies in any case
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error}); give the whole file.") from error
    if upright.mode.startswith("I"):  # 16 bits a pixel: 65535 is white
        return upright.convert("I").point(lambda level: level / 257).convert("L").convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def images_per_prompt(image: Images | None, num_prompts: int) -> list[list[ImageInput]] | None:
    """An `image` argument as one list of source images for each prompt."""
    if image is None:
        return None
    if isinstance(image, str | Path | Image.Image):
        return [[image] for _ in range(num_prompts)]
    if not isinstance(image, list | tuple):
        raise ValueError(f"image is a {type(image).__name__}; give a PIL image, a path, or a list of them.")
    if not image:
        raise ValueError("image is an empty list; leave it out to draw from text alone.")
    if any(isinstance(one, list | tuple) for one in image):
        if len(image) != num_prompts:
            raise ValueError(f"Got {len(image)} lists of source images for {num_prompts} prompts; give one list each.")
        return [list(sources) if isinstance(sources, list | tuple) else [sources] for sources in image]
    if num_prompts == 1:
        return [list(image)]
    if len(image) != num_prompts:
        raise ValueError(f"Got {len(image)} images for {num_prompts} prompts; give a list of images for each prompt.")
    return [[one] for one in image]


def _flatten(images: Images) -> list[ImageInput]:
    if not isinstance(images, list | tuple):
        return [images]  # type: ignore[list-item]
    return [picture for one in images for picture in _flatten(one)]


__all__ = ["Janus4oProcessor"]
