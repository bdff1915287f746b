# SPDX-License-Identifier: Apache-2.0
"""Many pictures in batches that fit: the same pictures, in the same order."""

import copy

import pytest
import torch
from small_checkpoints import save_ours

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, batching_janus4o
from sharegpt4o_image.janus4o.batching_janus4o import CacheSize, plan_batches
from sharegpt4o_image.janus4o.decoding_janus4o import CodeDecoder

PROMPTS = ["a red circle", "a very large blue star on a gray background", "a heart", "a yellow square", "a cross"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Janus4oForImageGeneration.from_pretrained(save_ours(tmp_path_factory.mktemp("model") / "small")).eval()


@pytest.mark.parametrize("num_images", [1, 2, 3, 7])
@pytest.mark.parametrize("limit", [None, 1, 2, 3, 5, 100])
def test_every_picture_is_planned_once(num_images, limit):
    batches = plan_batches([5, 40, 7, 12, 7], num_images, limit)
    numbers = [number for batch in batches for number in batch.numbers(num_images)]
    assert sorted(numbers) == list(range(5 * num_images))
    assert limit is None or max(len(batch.numbers(num_images)) for batch in batches) <= limit


def test_prompts_of_similar_length_come_together():
    assert [batch.prompts for batch in plan_batches([5, 40, 7, 38], 1, 2)] == [[0, 2], [3, 1]]


@pytest.mark.parametrize(("num_images", "limit"), [(1, 2), (2, 4), (3, 2)])
def test_batches_change_no_picture(model, num_images, limit):
    def draw(max_batch_size):
        generators = [torch.Generator().manual_seed(seed) for seed in range(5 * num_images)]
        return model.generate_image(
            PROMPTS, num_images_per_prompt=num_images, guidance_scale=3.0, generator=generators,
            output_type="codes", max_batch_size=max_batch_size,
        )  # fmt: skip

    assert torch.equal(draw(limit), draw(None))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_pictures_are_those_of_their_codes(model, device):
    """Each batch is decoded on its own, on a GPU while the next is drawn."""
    model = copy.deepcopy(model).to(device)
    drawn = {}
    for output_type in ("codes", "pt"):
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(15)]
        drawn[output_type] = model.generate_image(
            PROMPTS, num_images_per_prompt=3, generator=generators, output_type=output_type, max_batch_size=6
        )
    torch.testing.assert_close(drawn["pt"], model.decode_image(drawn["codes"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn["pt"], model.model.vqmodel.decode(drawn["codes"]), atol=1e-4, rtol=0)
    assert drawn["pt"].is_contiguous()


def test_a_batch_that_does_not_fit_names_the_largest_that_does(model, monkeypatch):
    text = model.config.text_config
    one = CacheSize(2, 30, 1, 64, False).num_bytes(text, 4)
    assert one == 2 * (30 + 64) * 2 * text.num_hidden_layers * text.hidden_size * 4
    monkeypatch.setattr(batching_janus4o, "free_bytes", lambda device: 3 * one)
    with pytest.raises(ValueError, match=r"Drawing 20 pictures at once takes .* pass max_batch_size=(\d+)") as raised:
        model.generate_image(["a red circle"] * 20, output_type="codes")
    fitting = int(str(raised.value).split("=")[1].rstrip("."))
    assert model.generate_image(["a red circle"] * 20, output_type="codes", max_batch_size=fitting).shape[0] == 20
    with pytest.raises(ValueError, match="pass max_batch_size="):
        model.generate_image(["a red circle"] * (fitting + 1), output_type="codes")
    monkeypatch.setattr(batching_janus4o, "free_bytes", lambda device: 10)
    with pytest.raises(ValueError, match="not even one picture fits"):
        model.generate_image("a red circle", output_type="codes")


@pytest.mark.parametrize("num_pictures", [6, 20])
def test_the_largest_batch_of_a_shared_prompt_fits(model, monkeypatch, num_pictures):
    """The prompt's own keys and values are there once, however many pictures are drawn."""
    model = copy.deepcopy(model)
    model.share_prompt_from = 0
    text, length = (
        model.config.text_config,
        model.processor.prepare_image_generation(["a heart"])["input_ids"].shape[1],
    )
    free = CacheSize(2, length, 5, 64, True).num_bytes(text, 4)
    monkeypatch.setattr(batching_janus4o, "free_bytes", lambda device: free)
    options = {"num_images_per_prompt": num_pictures, "output_type": "codes"}
    with pytest.raises(ValueError, match=r"pass max_batch_size=5\."):
        model.generate_image("a heart", **options)
    assert len(model.generate_image("a heart", max_batch_size=5, **options)) == num_pictures


@pytest.mark.parametrize(("num_pictures", "is_shared"), [(1, False), (3, False), (3, True)])
def test_what_is_planned_is_what_is_allocated(model, num_pictures, is_shared):
    embeds, mask = torch.randn(4, 30, model.config.text_config.hidden_size), torch.ones(4, 30, dtype=torch.long)
    size = CacheSize(4, 30, num_pictures, 64, is_shared)
    with torch.inference_mode():
        _, prefix = model.prefill(embeds, mask)
        decoder = CodeDecoder(model.model.language_model, size, prefix)
    shared = sum(part.nbytes for cache in decoder._prefix_caches for part in cache)
    allocated = sum(cache.nbytes for cache in decoder._caches) + shared
    assert allocated == size.num_bytes(model.config.text_config, 4)
    assert prefix.keys == prefix.values == [None, None]  # no second copy is held


def test_batches_that_were_stopped_at_different_steps_are_refused(model):
    seen = []

    def stop(step, codes):
        seen.append(step)
        return step == (3 if len(seen) <= 4 else 5)

    with pytest.raises(ValueError, match="stopped batches after 4 and 6 codes; stop all at the same step"):
        model.generate_image(PROMPTS[:2], output_type="codes", max_batch_size=1, callback_on_step_end=stop)


def test_free_memory_is_known_on_a_cpu():
    free = batching_janus4o.free_bytes(torch.device("cpu"))
    assert free is None or free > 1_000_000


def test_a_batch_size_below_one_is_refused(model):
    with pytest.raises(ValueError, match="max_batch_size is 0; it must be 1 or more"):
        model.generate_image("a star", max_batch_size=0)
