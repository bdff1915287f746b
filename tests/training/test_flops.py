# SPDX-License-Identifier: Apache-2.0
"""Operations are counted as PyTorch counts them, and as published figures need them."""

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration
from sharegpt4o_image.training.flops import TrainingFlops, peak_flops_per_second
from sharegpt4o_image.training.tiny_data import training_texts
from sharegpt4o_image.training.tiny_model import tiny_config, tiny_processor, untrained_model

P = 64  # image tokens of the tiny model
WIDTH, LAYERS = 192, 5
TERA = 1e12


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


@pytest.fixture
def model(processor):
    """As it is trained on edits, with attention that computes the masked half, too."""
    model = untrained_model(tiny_config(processor)).train()
    model.model.vqmodel.requires_grad_(False)
    model.set_attn_implementation("eager")
    return model


def counted(model, processor, is_edit):
    """Tokens, and what PyTorch counts in a step on one sample."""
    sources = [[Image.new("RGB", (32, 32))]] if is_edit else None
    batch = processor.prepare_image_generation(["a red circle"], sources)
    codes = torch.zeros(1, P, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(**batch, source_codes=codes if is_edit else None, target_codes=codes).loss.backward()
    return batch["input_ids"].shape[1] + P - 1, counter.get_total_flops()


def masked_half(tokens, passes=3):
    """Of the language model's attention: two products of tokens x tokens x width in each layer and pass."""
    return passes * 2 * tokens**2 * WIDTH * LAYERS


def test_an_edit_is_counted_as_pytorch_counts_it(model, processor):
    tokens, theirs = counted(model, processor, is_edit=True)
    assert TrainingFlops(model).of([tokens], 1) == theirs - masked_half(tokens)


def test_a_drawing_is_counted_as_pytorch_counts_it(model, processor):
    model.model.vision_model.requires_grad_(False)  # otherwise a blank picture goes through it, which does not count
    model.model.aligner.requires_grad_(False)
    tokens, theirs = counted(model, processor, is_edit=False)
    assert TrainingFlops(model).of([tokens], 0) == theirs - masked_half(tokens)


def test_what_is_frozen_costs_its_forward_pass(model, processor):
    model.requires_grad_(False)
    head = model.model.generation_head.requires_grad_(True)
    tokens, theirs = counted(model, processor, is_edit=True)
    first = 2 * P * head.proj_out.weight.numel()  # the gradient of its input, which nothing needs
    assert TrainingFlops(model).of([tokens], 1) == theirs - masked_half(tokens, passes=1) + first


def test_adapters_save_the_gradients_of_the_matrices_they_stand_beside(model, processor):
    peft = pytest.importorskip("peft")
    rank = 4
    lora = peft.LoraConfig(r=rank, target_modules=r".*language_model.*(q|k|v)_proj")
    adapted = peft.get_peft_model(model, lora)
    tokens, theirs = counted(adapted, processor, is_edit=False)
    first = 2 * tokens * 3 * (WIDTH * WIDTH + rank * WIDTH)  # as above, of the first layer
    assert TrainingFlops(adapted).of([tokens], 0) == theirs - masked_half(tokens) + first


def test_samples_add_up(model):
    flops = TrainingFlops(model)
    assert flops.of([300, 500], 1) + flops.of([70], 0) == flops.of([500, 70, 300], 1)
    assert flops.of([], 0) == 0


def model_of_7b():
    """Janus-Pro-7B's shapes, without weights; `num_image_tokens` and the rest are the configuration's defaults."""
    config = Janus4oConfig(
        text_config={
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 30,
            "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 102400,
        },
        vision_config={"projection_dim": 4096, "image_size": 384},
        vq_config={"projection_dim": 4096, "image_token_embed_dim": 4096, "num_patches": 24},
    )  # fmt: skip
    with torch.device("meta"):
        model = Janus4oForImageGeneration(config)
    model.model.vqmodel.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    return model


def test_a_step_of_the_7b_takes_what_the_reference_says():
    """24.3 and 71.4 TFLOP, where SigLIP was counted without its attention (0.1)."""
    flops = TrainingFlops(model_of_7b())
    assert flops.of([650], 0) / TERA == pytest.approx(24.3, rel=0.01)
    assert flops.of([1850], 1) / TERA == pytest.approx(71.4, rel=0.01)


def test_peaks_are_found_by_name():
    known = {
        "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A800-SXM4-80GB": 312, "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756, "NVIDIA H800": 989, "NVIDIA H800 PCIe": 756,
        "NVIDIA H200": 989, "NVIDIA H200 NVL": 835, "NVIDIA L40S": 362,
        "NVIDIA GeForce RTX 4090": 165, "NVIDIA B200": 2250,
    }  # fmt: skip
    assert {name: peak_flops_per_second(name) / TERA for name in known} == known
    for other in ("NVIDIA A10", "NVIDIA H20", "NVIDIA L40", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu"):
        assert peak_flops_per_second(other) is None
