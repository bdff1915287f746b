# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with random weights, in each of the formats that Janus comes in."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor

from sharegpt4o_image.builders.converter import convert
from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.tiny_data import training_texts
from sharegpt4o_image.training.tiny_model import tiny_config, tiny_processor


def small_config(processor: Janus4oProcessor, is_tied: bool = False, num_codes: int = 64) -> Janus4oConfig:
    """The tiny checkpoints' configuration with two layers of 64, and few codes."""
    given = tiny_config(processor).to_dict()
    given["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
    given["vision_config"] |= {"hidden_size": 64, "projection_dim": 64, "mlp_ratio": 4.0}
    given["vq_config"] |= {
        "base_channels": 32,
        "latent_channels": 32,
        "num_embeddings": num_codes,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    }
    given["tie_word_embeddings"] = is_tied
    return Janus4oConfig(**given)


def small_processor() -> Janus4oProcessor:
    """The tiny checkpoints' processor, its tokenizer trained on few texts."""
    return tiny_processor(training_texts(0, 50))


def small_model(processor: Janus4oProcessor, is_tied: bool = False, num_codes: int = 64) -> Janus4oForImageGeneration:
    """Random weights, spread widely enough that the likeliest codes differ from step to step."""
    torch.manual_seed(0)
    model = Janus4oForImageGeneration(small_config(processor, is_tied, num_codes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
    return model


def save_ours(folder: Path, is_tied: bool = False) -> Path:
    """A Janus-4o folder."""
    processor = small_processor()
    small_model(processor, is_tied).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_original(folder: Path, is_tied: bool = False) -> Path:
    """The same as an original checkpoint, with the tensors that nothing uses."""
    ours = save_ours(folder.with_name(folder.name + "-ours"), is_tied)
    convert(ours, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["gen_vision_model.quantize.codebook_used"] = torch.zeros(64)
    tensors["vision_model.vision_tower.attn_pool.q.weight"] = torch.zeros(64, 64)
    save_file(tensors, folder / "model.safetensors")
    return folder


def save_transformers(folder: Path) -> Path:
    """The same as transformers' own Janus saves it."""
    processor = small_processor()
    model = small_model(processor)
    given = model.config.to_dict() | {"model_type": "janus"}
    for key in ("boi_token_id", "eoi_token_id", "pad_token_id", "guidance_scale", "edit_freedom"):
        given.pop(key)
    theirs = JanusForConditionalGeneration(JanusConfig(**given))
    theirs.load_state_dict(model.state_dict())
    theirs.save_pretrained(folder)
    JanusProcessor(
        processor.image_processor, processor.tokenizer, num_image_tokens=processor.num_image_tokens
    ).save_pretrained(folder)
    return folder


def split(folder: Path, num_shards: int, suffix: str = "safetensors") -> Path:
    """Replace the only weight file of `folder` by several, with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for number in range(num_shards):
        part = {name: tensors[name] for name in names[number::num_shards]}
        shard = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{suffix}"
        save_file(part, folder / shard) if suffix == "safetensors" else torch.save(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
