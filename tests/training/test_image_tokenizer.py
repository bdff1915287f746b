# SPDX-License-Identifier: Apache-2.0
"""The image tokenizer's parts in closed form: patches, clusters, a start that sees each cell alone."""

import pytest
import torch
import torch.nn.functional as F

from sharegpt4o_image.training.image_tokenizer import (
    nearest_clusters,
    patches_of,
    spread_points,
    start_codebook,
    start_local,
    train_decoder,
    train_image_tokenizer,
)
from sharegpt4o_image.training.tiny_data import pixel_batches, training_texts
from sharegpt4o_image.training.tiny_model import tiny_config, tiny_processor, untrained_model


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(training_texts(0, 200))


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return untrained_model(tiny_config(processor))


def test_patches_come_row_by_row():
    pixels = torch.arange(16.0).view(1, 1, 4, 4)
    assert patches_of(pixels, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_every_patch_gets_the_nearest_centre():
    centres = torch.tensor([[0.0] * 4, [1.0] * 4])
    pixels = torch.tensor([[[[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.6]]]])
    assert nearest_clusters(pixels, centres, 2).tolist() == [[0, 1]]


def test_equal_points_are_drawn_once():
    points = torch.tensor([[0.0], [0.0], [0.0], [5.0], [5.0], [9.0]])
    chosen = spread_points(points, 3, torch.Generator().manual_seed(0))
    assert sorted(points[chosen].flatten().tolist()) == [0, 5, 9]


def test_a_codebook_starts_with_like_codes_for_like_centres(model):
    torch.manual_seed(2)
    codebook = model.model.vqmodel.quantize.embedding
    centres = torch.randn(len(codebook.weight), 48)
    centres[1] = centres[0] + 0.01
    start_codebook(codebook, centres)
    assert F.cosine_similarity(codebook.weight[0], codebook.weight[1], dim=0) > 0.99
    torch.testing.assert_close(codebook.weight.norm(dim=-1), torch.ones(len(centres)))


def test_a_local_start_keeps_far_changes_out_of_a_cell(model):
    torch.manual_seed(1)
    vqmodel = model.model.vqmodel
    before = torch.rand(1, 3, 32, 32) * 2 - 1
    after = before.clone()
    after[..., 20:, 20:] = 1

    def shift():
        with torch.no_grad():
            first, second = vqmodel.quant_conv(vqmodel.encoder(torch.cat([before, after])))[:, :, 0, 0]
        return 1 - F.cosine_similarity(first, second, dim=0)

    free = shift()
    start_local(vqmodel.encoder)
    assert shift() < 0.2 * free


def test_training_learns_codes_and_leaves_the_tokenizer_frozen(model, processor):
    torch.manual_seed(0)
    vqmodel = model.model.vqmodel
    log = train_image_tokenizer(vqmodel, pixel_batches(processor, 0, 8), 8, learning_rate=1e-3, seed=0)
    assert log[-1]["reconstruction"] < log[0]["reconstruction"]
    assert not any(parameter.requires_grad for parameter in vqmodel.parameters())


def test_training_the_decoder_leaves_the_codes_as_they_are(model, processor):
    torch.manual_seed(0)
    vqmodel = model.model.vqmodel
    before = {name: parameter.clone() for name, parameter in vqmodel.named_parameters()}
    train_decoder(vqmodel, model.encode_image, pixel_batches(processor, 0, 4), 2, learning_rate=1e-2)
    for name, parameter in vqmodel.named_parameters():
        is_trained = name.startswith(("decoder.", "post_quant_conv."))
        assert torch.equal(parameter, before[name]) != is_trained, name
        assert not parameter.requires_grad
