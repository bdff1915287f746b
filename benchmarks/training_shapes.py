# SPDX-License-Identifier: Apache-2.0
"""Shapes of the training benchmark: untrained models, and samples to train them on."""

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.configuration_janus4o import token_ids
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.training.encoding import encode_images
from sharegpt4o_image.training.tiny_data import draw_edit, training_texts
from sharegpt4o_image.training.tiny_model import tiny_processor

PICTURE_SIDE = 256  # pixels of the files


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; pictures are square, with `cells` x `cells` codes of `patch` pixels a side."""

    layers: int
    width: int
    intermediate: int
    heads: int
    vocabulary: int
    num_embeddings: int
    cells: int
    patch: int
    vision: dict[str, Any]
    vq: dict[str, Any]

    def config(self, processor: Janus4oProcessor) -> Janus4oConfig:
        """The model's configuration, with the token ids of the processor's tokenizer."""
        text = {
            "model_type": "llama", "vocab_size": self.vocabulary, "hidden_size": self.width,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.heads, "max_position_embeddings": 16384,
        }  # fmt: skip
        vision = {
            "image_size": self.cells * self.patch, "patch_size": self.patch, "num_image_tokens": self.cells**2,
            "projection_dim": self.width, **self.vision,
        }  # fmt: skip
        vq = {
            "num_embeddings": self.num_embeddings, "projection_dim": self.width, "num_patches": self.cells,
            "image_token_embed_dim": self.width, **self.vq,
        }  # fmt: skip
        ids: dict[str, Any] = token_ids(processor.tokenizer)
        return Janus4oConfig(
            text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False, **ids
        )  # fmt: skip


_SMALL_VISION = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL_VQ = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "latent_channels": 32}
SMALL = Shape(4, 512, 1376, 8, 2048, 2048, 12, 8, _SMALL_VISION, _SMALL_VQ)
SHAPES = {
    "tiny": replace(SMALL, layers=2, width=64, intermediate=128, heads=4, vocabulary=512, num_embeddings=64, cells=4),
    "small": SMALL,
    "long": replace(SMALL, width=256, intermediate=688, cells=24),
    "vocabulary": replace(SMALL, vocabulary=102_400),
    # What is left out is the configuration's default: the released SigLIP-L and VQ-16.
    "1b": Shape(24, 2048, 5632, 16, 102_400, 16384, 24, 16, {}, {}),
    "7b": Shape(30, 4096, 11008, 32, 102_400, 16384, 24, 16, {}, {}),
}


# --------------------------------------------------------------------------- model and rows


def make_processor(shape: Shape) -> Janus4oProcessor:
    """A processor for the shape; the tokenizer is the tiny one, so prompts are the tiny data set's."""
    side = shape.cells * shape.patch
    image_processor = JanusImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=1
    )
    return Janus4oProcessor(
        image_processor, tiny_processor(training_texts(0, 200)).tokenizer, num_image_tokens=shape.cells**2
    )


def make_model(shape: Shape, processor: Janus4oProcessor, device: str) -> Janus4oForImageGeneration:
    """The same random weights each time; on a GPU in bf16, but for the image tokenizer."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    with torch.device(device):
        model = Janus4oForImageGeneration(shape.config(processor))
    torch.set_default_dtype(torch.float32)
    model.model.vqmodel.float()
    with torch.no_grad():  # large enough that attention matters, or masks could not be told apart
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "vqmodel" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def make_rows(model: Janus4oForImageGeneration, processor: Janus4oProcessor, num_samples: int) -> Dataset:
    """Text to image and edits in turns, with the pictures and with their codes."""
    rng = random.Random(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "input_prompt", "input_image", "output_image")}
    for index in range(num_samples):
        source, _, instruction, target = draw_edit(rng)
        columns["id"].append(str(index))
        columns["input_prompt"].append(instruction)
        columns["input_image"].append([render(source, PICTURE_SIDE)] if index % 2 else [])
        columns["output_image"].append(render(target, PICTURE_SIDE))
    columns["target_codes"] = list(encode_images(model, processor, columns["output_image"]))
    columns["source_codes"] = [list(encode_images(model, processor, images)) for images in columns["input_image"]]
    codes = List(Value("uint16"))
    features = Features(
        {
            "id": Value("string"), "input_prompt": Value("string"), "input_image": List(Image()),
            "output_image": Image(), "target_codes": codes, "source_codes": List(codes),
        }
    )  # fmt: skip
    return Dataset.from_dict(columns, features=features)
