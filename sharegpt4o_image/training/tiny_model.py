# SPDX-License-Identifier: Apache-2.0
"""The tiny Janus-4o: its tokenizer, its processor and the untrained model (sizes are our own choice)."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.processing_janus4o import ASSISTANT_TAG, USER_TAG

IMAGE_SIZE = 32  # pixels
PATCH_SIZE = 4  # pixels of an image token's side, for the vision tower and the image tokenizer
NUM_CODES = 1024
VOCABULARY_SIZE = 512

_BOS, _EOS, _PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
_BOI, _EOI, _IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"


def tiny_processor(texts: Iterable[str]) -> Janus4oProcessor:
    """A processor whose byte-level BPE tokenizer was trained on `texts`; its special tokens are Janus-Pro's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[_BOS, _EOS, _PAD, _BOI, _EOI, _IMAGE, USER_TAG, ASSISTANT_TAG],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        additional_special_tokens=[USER_TAG, ASSISTANT_TAG],
        extra_special_tokens={"image_token": _IMAGE, "boi_token": _BOI, "eoi_token": _EOI},
    )
    image_processor = JanusImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=1
    )
    return Janus4oProcessor(image_processor, fast, num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2)


def tiny_config(processor: Janus4oProcessor) -> Janus4oConfig:
    """3.9 M parameters, below 8 MB in half precision; all token ids are looked up in the processor's tokenizer."""
    tokenizer = processor.tokenizer
    width = 192
    return Janus4oConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 416,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},  # sequences have about 220 tokens
            "initializer_range": 0.05,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 2.0,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "num_image_tokens": processor.num_image_tokens,
            "projection_dim": width,
            "depth": 2,
        },
        vq_config={
            "base_channels": 64,  # GroupNorm has 32 groups: with fewer channels it removes the colours
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
            "latent_channels": 64,
            "num_embeddings": NUM_CODES,
            "embed_dim": 8,
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE),
        boi_token_id=tokenizer.convert_tokens_to_ids(_BOI),
        eoi_token_id=tokenizer.convert_tokens_to_ids(_EOI),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def untrained_model(config: Janus4oConfig) -> Janus4oForImageGeneration:
    """The tiny model with random weights; the two-layer adapters start at torch's own scale, not at 0.02."""
    model = Janus4oForImageGeneration(config)
    for adapter in (model.model.aligner, model.model.generation_aligner, model.model.generation_head):
        for module in adapter.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    return model


@torch.no_grad()
def copy_codebook(model: Janus4oForImageGeneration) -> None:
    """Start the language model's code embeddings from the trained codebook, so that similar codes look similar."""
    codebook_VD = nn.functional.normalize(model.model.vqmodel.quantize.embedding.weight, dim=-1)
    model.model.generation_embeddings.weight.copy_(codebook_VD)
