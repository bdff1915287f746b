# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of codes changes with all that they depend on, and with nothing else."""

import pytest
import torch

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.training.encode_run import DEFAULT_GEOMETRY
from sharegpt4o_image.training.encoding import tokenizer_fingerprint
from sharegpt4o_image.training.sft_config import PRESETS

MODEL = "tiny-janus-pro"


@pytest.fixture
def processor():
    processor = load_checkpoint(MODEL, "float32")[1]
    processor.geometry = "center_crop"
    return processor


def test_the_fingerprint_is_of_all_that_codes_depend_on(processor):
    model = load_checkpoint(MODEL, "float32")[0]
    first = tokenizer_fingerprint(model, processor)
    with torch.no_grad():
        model.model.vqmodel.decoder.conv_in.weight += 1
        model.lm_head.weight += 1
    assert tokenizer_fingerprint(model, processor) == first
    processor.geometry = "pad"
    padded = tokenizer_fingerprint(model, processor)
    assert (padded.weights, padded.geometry) == (first.weights, "pad")
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    darker = tokenizer_fingerprint(model, processor)
    for part in ("encoder.conv_in", "quant_conv", "quantize.embedding"):
        with torch.no_grad():
            model.model.vqmodel.get_submodule(part).weight[0] += 1e-3
    other = tokenizer_fingerprint(model, processor)
    assert other.weights != first.weights
    assert len({one.digest for one in (first, padded, darker, other)}) == 4


def test_the_dtype_on_disk_counts_only_if_it_changes_the_weights(processor, tmp_path):
    fingerprints = {}
    for name, rounds in (("as it is", False), ("rounded", True)):
        model = load_checkpoint(MODEL, "bfloat16")[0]
        assert model.lm_head.weight.dtype == torch.bfloat16
        if rounds:
            model.to(torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        fingerprints[name] = tokenizer_fingerprint(load_checkpoint(str(tmp_path / name))[0], processor)
    assert fingerprints["as it is"] == tokenizer_fingerprint(load_checkpoint(MODEL, "float32")[0], processor)
    assert fingerprints["rounded"] != fingerprints["as it is"]


def test_the_default_geometry_is_that_of_the_default_preset():
    assert PRESETS["default"]["geometry"] == DEFAULT_GEOMETRY
