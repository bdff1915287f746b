# SPDX-License-Identifier: Apache-2.0
"""Captured decode steps: reused between calls, and never when they no longer hold.

There is no GPU here: the kernels of a graph run one by one (`EagerTwin`), on the same memory, in the same order. The
tests marked `gpu` run the graphs themselves.
"""

import copy
import pickle
import shutil
import threading

import pytest
import torch
from plain_drawing import greedy, oracle, picture
from small_checkpoints import save_ours
from torch import nn

from sharegpt4o_image.janus4o import (
    Janus4oForImageGeneration,
    Janus4oProcessor,
    batching_janus4o,
    capture_janus4o,
    compilation_janus4o,
    generation_janus4o,
)
from sharegpt4o_image.janus4o.batching_janus4o import CacheSize

PROMPTS = ["a red circle", "a very large blue star on a gray background", "a heart"]


class EagerTwin:
    """A `GraphedStep` without a graph; counts how many were made."""

    made = 0

    def __init__(self, run, restart, pool, device):
        for _ in range(3):
            run()
        restart()
        self._run = run
        EagerTwin.made += 1

    def __call__(self):
        return self._run()


class Doubled(nn.Module):
    """Stands for an adapter."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


@pytest.fixture
def twin(monkeypatch):
    """Captures on a CPU, in stages of 24 codes: the last is shorter."""
    monkeypatch.setattr(capture_janus4o, "GraphedStep", EagerTwin)
    monkeypatch.setattr(capture_janus4o, "STAGE", 24)
    EagerTwin.made = 0
    return EagerTwin


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ours(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture
def model(folder):
    model = Janus4oForImageGeneration.from_pretrained(folder).eval()
    model.uses_cuda_graph, model.share_prompt_from = True, 0
    return model


@pytest.fixture(scope="module")
def processor(folder):
    return Janus4oProcessor.from_pretrained(folder)


# ------------------------------------------------------------------ the same codes


@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize("num_pictures", [1, 3])
@pytest.mark.parametrize("is_shared", [False, True])
def test_captured_steps_change_no_code(twin, model, processor, is_edit, num_pictures, is_shared):
    images = [[picture(n)] for n in range(3)] if is_edit else None
    expected = oracle(model, processor, PROMPTS, images).repeat_interleave(num_pictures, 0)
    model.share_prompt_from = 0 if is_shared else 10_000
    assert torch.equal(greedy(model, PROMPTS, image=images, num_images_per_prompt=num_pictures), expected)
    assert twin.made == 3  # stages


@pytest.mark.parametrize("until", [0.1, 0.5])
@pytest.mark.parametrize("is_edit", [False, True])
def test_guidance_for_a_part_of_the_codes(twin, model, until, is_edit):
    images = [[picture(n)] for n in range(3)] if is_edit else None
    options = {"image": images, "num_images_per_prompt": 2, "guidance_until": until}
    drawn = greedy(model, PROMPTS, **options)
    again = greedy(model, PROMPTS, **options)
    model.uses_cuda_graph = False
    assert torch.equal(drawn, greedy(model, PROMPTS, **options))
    assert torch.equal(drawn, again)
    assert twin.made == 6  # stages with and without the unconditional branch


def test_samples_are_those_without_a_graph(twin, model):
    def draw(uses_cuda_graph):
        model.uses_cuda_graph = uses_cuda_graph
        generator = torch.Generator().manual_seed(0)
        return model.generate_image(PROMPTS, generator=generator, output_type="codes", num_images_per_prompt=2)

    assert torch.equal(draw(True), draw(False))


# ------------------------------------------------------------------ reuse


def test_a_capture_serves_other_prompts_scales_and_fewer_pictures(twin, model, processor):
    model.share_prompt_from = 10_000
    reports = model.compile_generation(batch_sizes=[4, 1], joins_kernels=False)
    assert [report.batch_size for report in reports] == [1, 4]
    assert all(report.prompt_tokens == 64 and report.seconds > 0 for report in reports)
    assert reports[1].num_bytes == 4 * reports[0].num_bytes
    made = twin.made
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[1:], [*PROMPTS, "a star"]):
        for scale in (5.0, 2.0):
            expected = oracle(model, processor, prompts, scale=scale)
            assert torch.equal(greedy(model, prompts, guidance_scale=scale), expected)
    expected = oracle(model, processor, PROMPTS[:1]).expand(3, -1)
    assert torch.equal(greedy(model, PROMPTS[0], num_images_per_prompt=3), expected)
    assert twin.made == made


def test_a_capture_of_a_shared_prompt_serves_fewer_pictures(twin, model, processor):
    images = [[picture(0)]]
    tokens = processor.prepare_image_generation(PROMPTS[:1], images)["input_ids"].shape[1]
    (report,) = model.compile_generation([5], tokens, num_branches=3, joins_kernels=False)
    assert report.prompt_tokens % 64 == 0
    assert report.prompt_tokens >= tokens
    made = twin.made
    for number, num_pictures in ((0, 5), (1, 2), (2, 3)):
        images = [[picture(number)]]
        expected = oracle(model, processor, PROMPTS[:1], images).expand(num_pictures, -1)
        assert torch.equal(greedy(model, PROMPTS[0], image=images, num_images_per_prompt=num_pictures), expected)
    assert twin.made == made


def test_a_longer_capture_serves_shorter_prompts(twin, model, processor, monkeypatch):
    for module in (compilation_janus4o, generation_janus4o):
        monkeypatch.setattr(module, "PROMPT_BUCKET", 8)
    model.compile_generation([1], prompt_tokens=40, joins_kernels=False)
    for prompt in PROMPTS:
        assert torch.equal(greedy(model, prompt), oracle(model, processor, [prompt]))
    assert twin.made == 3


def test_what_was_captured_ahead_is_not_captured_twice(twin, model):
    assert len(model.compile_generation([1, 3, 1], joins_kernels=False)) == 2
    assert model.compile_generation([3], joins_kernels=False) == []


def test_the_last_shapes_captured_on_the_way_are_kept(twin, model):
    shapes = [PROMPTS[:1], PROMPTS, ["a star"] * 7, ["a star"] * 15]  # each more than twice as large as the one before
    for number, prompts in enumerate(shapes):
        greedy(model, prompts)
        greedy(model, prompts)
        assert twin.made == 3 * (number + 1)
    greedy(model, shapes[1])  # still there
    assert twin.made == 12
    greedy(model, shapes[0])  # too small for what is there, and let go of
    assert twin.made == 15
    greedy(model, ["a star"] * 2)  # has room in what drew three
    assert twin.made == 15
    model.release_generation()
    greedy(model, shapes[1])
    assert twin.made == 18


def test_what_has_no_room_is_drawn_without_a_capture(twin, model, processor, monkeypatch):
    size = CacheSize(2, 64, 1, model.config.num_image_tokens, False)
    free = size.num_bytes(model.config.text_config, 4)
    for module in (batching_janus4o, compilation_janus4o):
        monkeypatch.setattr(module, "free_bytes", lambda device: free)
    assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))
    assert twin.made == 0
    with pytest.raises(ValueError, match="not even one picture fits"):
        model.compile_generation([1])


def test_no_memory_for_a_capture_is_no_reason_never_to_try_again(twin, model, processor, monkeypatch):
    def fail(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "_uses_graphs", lambda: model.uses_cuda_graph is None)  # as on a GPU
    model.uses_cuda_graph = None
    with monkeypatch.context() as patch:
        patch.setattr(EagerTwin, "__init__", fail)
        assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))
    greedy(model, PROMPTS[0])
    assert twin.made == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler's kernels for a CPU need g++")
def test_joined_kernels_change_no_code(twin, model, processor):
    model.compile_generation([1])
    assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))


# ------------------------------------------------------------------ what no longer holds


def test_moved_and_cast_weights_are_captured_again(twin, model, processor, folder):
    codes = greedy(model, PROMPTS[0])
    model.to(torch.bfloat16)
    assert greedy(model, PROMPTS[0]).shape == codes.shape
    model.load_state_dict(Janus4oForImageGeneration.from_pretrained(folder).state_dict(), assign=True)
    model.to(torch.float32)
    assert twin.made == 6
    assert torch.equal(greedy(model, PROMPTS[0]), codes)
    assert twin.made == 9


def test_what_was_captured_goes_when_weights_move_and_stays_when_they_do_not(twin, model):
    greedy(model, PROMPTS[0])
    model.to("cpu", torch.float32)
    assert not model._captures.is_empty
    greedy(model, PROMPTS[0])
    assert twin.made == 3
    model.to(torch.bfloat16)
    assert model._captures.is_empty


def test_weights_changed_in_place_are_used(twin, model, processor):
    greedy(model, PROMPTS[0])
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            if parameter.dim() == 2:  # the norms' kernels of a CPU have a scaled copy, those of a GPU have none
                parameter.mul_(0.5)
    assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))
    assert twin.made == 3


@pytest.mark.parametrize("place", ["language_model.layers.0.mlp.down_proj", "generation_head", "language_model.norm"])
def test_hooks_and_adapters_are_not_captured(twin, model, place):
    called = []
    module = model.model.get_submodule(place)
    handle = module.register_forward_hook(lambda *_: called.append(1))
    greedy(model, PROMPTS[0])
    assert len(called) >= model.config.num_image_tokens
    assert twin.made == 0
    with pytest.raises(ValueError, match="adapters or hooks, which cannot be captured; merge or remove them"):
        model.compile_generation()
    handle.remove()
    module.lora = Doubled(nn.Linear(2, 2))
    greedy(model, PROMPTS[0])
    assert twin.made == 0


def test_a_copied_or_sent_model_captures_for_itself(twin, model):
    codes = greedy(model, PROMPTS[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        made = twin.made
        assert torch.equal(greedy(other, PROMPTS[0]), codes)
        assert twin.made == made + 3


# ------------------------------------------------------------------ calls beside and within calls


def test_an_interrupted_call_leaves_the_next_one_clean(twin, model):
    expected = greedy(model, PROMPTS[0])

    def fail(step, codes):
        if step == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        greedy(model, PROMPTS[1], callback_on_step_end=fail)
    assert torch.equal(greedy(model, PROMPTS[0]), expected)


def test_threads_take_turns(twin, model):
    expected = {prompt: greedy(model, prompt) for prompt in PROMPTS}
    drawn = {}
    threads = [threading.Thread(target=lambda p=p: drawn.update({p: greedy(model, p)})) for p in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(drawn[prompt], expected[prompt]) for prompt in PROMPTS)


def test_a_callback_may_draw(twin, model):
    expected = [greedy(model, prompt) for prompt in PROMPTS[:2]]
    inner = []

    def draw(step, codes):
        if step == 30:
            inner.append(greedy(model, PROMPTS[1]))

    assert torch.equal(greedy(model, PROMPTS[0], callback_on_step_end=draw), expected[0])
    assert torch.equal(inner[0], expected[1])


def test_a_callback_may_not_release_what_draws(twin, model):
    for act in (model.release_generation, model.compile_generation, lambda: model.to(torch.bfloat16)):
        with pytest.raises(RuntimeError, match="A callback cannot compile, release or move what draws"):
            greedy(model, PROMPTS[0], callback_on_step_end=lambda step, codes, act=act: act())
    assert model.dtype == torch.float32


# ------------------------------------------------------------------ without a GPU, and where it fails


def test_a_cpu_is_refused(model):
    for run in (lambda: greedy(model, PROMPTS[0]), model.compile_generation):
        with pytest.raises(ValueError, match=r"CUDA graphs need a CUDA device, and the model is on cpu; move it"):
            run()
    model.uses_cuda_graph = None
    assert greedy(model, PROMPTS[0]).shape == (1, model.config.num_image_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": []}, r"batch_sizes is \[\]; give one number or more, each 1 or more"),
        ({"batch_sizes": [0]}, r"batch_sizes is \[0\]; give one number or more, each 1 or more"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0 and num_branches 2; give 1 or more, and 1, 2 or 3"),
        ({"num_branches": 4}, "prompt_tokens is 64 and num_branches 4; give 1 or more, and 1, 2 or 3"),
    ],
)
def test_impossible_shapes_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.compile_generation(**options)


def test_a_failing_capture_is_reported_and_drawing_goes_on(twin, model, monkeypatch, caplog):
    def fail(self, run, restart, pool, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = greedy(model, PROMPTS[0])
    model.release_generation()
    monkeypatch.setattr(EagerTwin, "__init__", fail)
    with pytest.raises(RuntimeError, match="operation not permitted"):
        greedy(model, PROMPTS[0])
    monkeypatch.setattr(model, "_uses_graphs", lambda: model.uses_cuda_graph is None)  # as on a GPU
    model.uses_cuda_graph = None
    assert torch.equal(greedy(model, PROMPTS[0]), expected)
    assert model.uses_cuda_graph is False


# ------------------------------------------------------------------ the graphs themselves


def drawings(model, **options):
    """Codes with and without graphs; the graphs draw twice."""
    model.uses_cuda_graph = False
    expected = greedy(model, **options)
    model.uses_cuda_graph = True
    return expected, greedy(model, **options), greedy(model, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("until", [1.0, 0.5])
def test_graphs_draw_what_launched_kernels_draw(model, is_edit, is_shared, until):
    model.to("cuda").share_prompt_from = 0 if is_shared else 10_000
    images = [[picture(n)] for n in range(3)] if is_edit else None
    options = {"image": images, "num_images_per_prompt": 2, "guidance_until": until}
    expected, *drawn = drawings(model, prompts=PROMPTS, **options)
    assert all(torch.equal(codes, expected) for codes in drawn)


@pytest.mark.gpu
def test_graphs_outlive_others(model):
    model.to("cuda").compile_generation([1], joins_kernels=False)
    expected = greedy(model, PROMPTS[0])
    for number in (2, 5, 11, 23):  # the first of them is let go of
        greedy(model, PROMPTS[:1] * number)
    assert torch.equal(greedy(model, PROMPTS[0]), expected)


@pytest.mark.gpu
def test_joined_kernels_of_a_graph_change_few_codes(model):
    model.to("cuda").compile_generation([3], joins_kernels=True)
    expected, *drawn = drawings(model, prompts=PROMPTS)
    assert all((codes == expected).float().mean() > 0.9 for codes in drawn)


@pytest.mark.gpu
def test_bf16_draws_padded_prompts_that_are_shared(model):
    model.to("cuda", torch.bfloat16).share_prompt_from = 0
    for codes in drawings(model, prompts=PROMPTS, num_images_per_prompt=2):
        assert codes.shape == (6, model.config.num_image_tokens)
