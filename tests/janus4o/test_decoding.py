# SPDX-License-Identifier: Apache-2.0
"""The fast decode step against the loop that everybody writes, and what it must not disturb."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from plain_drawing import greedy, oracle, oracle_logits, picture
from small_checkpoints import save_ours, small_config, small_processor
from torch import nn
from transformers import TorchAoConfig

from sharegpt4o_image.checkpoints import TINY_JANUS_4O, load_checkpoint
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor, decoding_janus4o
from sharegpt4o_image.janus4o.decoding_janus4o import attend, join_weights
from sharegpt4o_image.janus4o.generation_janus4o import ImageRequest
from sharegpt4o_image.janus4o.sampling_janus4o import Guidance

PROMPTS = ["a red circle", "a very large blue star on a gray background", "a heart"]


@pytest.fixture
def folder(tmp_path_factory):
    return save_ours(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture
def model(folder):
    return Janus4oForImageGeneration.from_pretrained(folder).eval()


@pytest.fixture
def processor(folder):
    return Janus4oProcessor.from_pretrained(folder)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize("share_from", [None, 0, 10_000])
def test_no_code_changes(model, processor, batch, is_edit, share_from):
    """Prompts of different lengths in a padded batch; pictures of one prompt over one prefix, and over copies."""
    if share_from is not None:
        model.share_prompt_from = share_from
        prompts, images = PROMPTS[1:2], [[picture(0)]] if is_edit else None
        expected = oracle(model, processor, prompts, images).expand(batch, -1)
        assert torch.equal(greedy(model, prompts, image=images, num_images_per_prompt=batch), expected)
        return
    prompts = [PROMPTS[n % 3] for n in range(batch)]
    images = [[picture(n)] for n in range(batch)] if is_edit else None
    assert torch.equal(greedy(model, prompts, image=images), oracle(model, processor, prompts, images))


@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize(("num_pictures", "scale"), [(1, 1.0), (1, 5.0), (2, 5.0)])
def test_products_with_few_columns_change_no_code(model, processor, monkeypatch, is_edit, num_pictures, scale):
    used = []
    monkeypatch.setattr(decoding_janus4o, "MIN_ONE_ROW_WEIGHT", 1)
    monkeypatch.setattr(decoding_janus4o, "MIN_COLUMN_WEIGHT", 1)
    monkeypatch.setattr(decoding_janus4o, "MIN_COLUMN_WIDTH", 1)
    monkeypatch.setattr(decoding_janus4o, "FEW_ROWS", (1, 2, 3, 4, 6))
    reads_columns = decoding_janus4o.reads_columns
    monkeypatch.setattr(decoding_janus4o, "reads_columns", lambda *args: used.append(reads_columns(*args)) or used[-1])
    images = [[picture(0)]] if is_edit else None
    expected = oracle(model, processor, PROMPTS[:1], images, scale, scale - 1).expand(num_pictures, -1)
    drawn = greedy(
        model, PROMPTS[0], image=images, num_images_per_prompt=num_pictures, guidance_scale=scale,
        edit_freedom=scale - 1,
    )  # fmt: skip
    assert torch.equal(drawn, expected)
    assert all(used)


@pytest.mark.parametrize("num_pictures", [1, 2])
def test_several_padded_prompts_with_several_pictures(model, processor, num_pictures):
    model.share_prompt_from = 0
    expected = oracle(model, processor, PROMPTS).repeat_interleave(num_pictures, 0)
    assert torch.equal(greedy(model, PROMPTS, num_images_per_prompt=num_pictures), expected)


@pytest.mark.parametrize("num_pictures", [1, 2])
def test_grouped_query_attention(num_pictures):
    processor = small_processor()
    config = small_config(processor)
    config.text_config.num_key_value_heads = 2
    torch.manual_seed(0)
    model = Janus4oForImageGeneration(config).eval()
    model.share_prompt_from = 0
    codes = greedy(model, PROMPTS, num_images_per_prompt=num_pictures, processor=processor)
    assert torch.equal(codes, oracle(model, processor, PROMPTS).repeat_interleave(num_pictures, 0))


def test_attention_in_two_parts_is_attention():
    torch.manual_seed(0)
    query, keys, values = torch.randn(2, 4, 3, 8), torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8)
    whole = nn.functional.scaled_dot_product_attention(query, keys, values)
    left, left_weight = attend(query, keys[:, :, :13], values[:, :, :13], None)
    right, right_weight = attend(query, keys[:, :, 13:], values[:, :, 13:], None)
    merged = torch.lerp(left, right, (right_weight - left_weight).sigmoid())
    torch.testing.assert_close(merged, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_queries", [2, 3, 4])
def test_attention_by_products_is_attention(monkeypatch, num_queries):
    torch.manual_seed(0)
    query = torch.randn(2, num_queries, 4, 8).transpose(1, 2)
    keys, values = torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8)
    mask = torch.zeros(2, 1, 1, 20)
    mask[1, ..., :6] = float("-inf")
    for given in (None, mask):
        expected = attend(query, keys, values, given)
        with monkeypatch.context() as patch:
            patch.setattr(decoding_janus4o, "MIN_PRODUCT_KEYS", 1)
            assert decoding_janus4o.is_faster_by_products(keys, num_queries)
            torch.testing.assert_close(attend(query, keys, values, given), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("is_edit", [False, True])
def test_attention_to_a_prompt_by_products_changes_no_code(model, processor, monkeypatch, is_edit):
    monkeypatch.setattr(decoding_janus4o, "MIN_PRODUCT_KEYS", 1)
    model.share_prompt_from = 0
    images = [[picture(n)] for n in range(3)] if is_edit else None
    expected = oracle(model, processor, PROMPTS, images).repeat_interleave(4, 0)
    assert torch.equal(greedy(model, PROMPTS, image=images, num_images_per_prompt=4), expected)


# ------------------------------------------------------------------ what it must not disturb


def test_joined_weights_are_the_parameters_themselves(model):
    attention = model.model.language_model.layers[0].self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    before = [projection.weight.clone() for projection in projections]
    joined = join_weights(projections)
    assert all(torch.equal(old, p.weight) for old, p in zip(before, projections, strict=True))
    assert torch.equal(joined, torch.cat(before))
    with torch.no_grad():
        attention.k_proj.weight.fill_(7.0)
    assert (joined[64:128] == 7).all()
    assert join_weights(projections).data_ptr() == joined.data_ptr()  # once


def test_drawing_leaves_a_model_that_can_be_saved_trained_and_cast(model, folder, processor, tmp_path):
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    codes = greedy(model, PROMPTS[0])
    assert all(torch.equal(before[name], parameter) for name, parameter in model.state_dict().items())
    model.save_pretrained(tmp_path)
    again = Janus4oForImageGeneration.from_pretrained(tmp_path)
    assert torch.equal(greedy(again, PROMPTS[0], processor=processor), codes)
    # a training step changes what is drawn, as it would have before
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**processor.prepare_image_generation(PROMPTS[:1]), target_codes=codes).loss.backward()
    optimizer.step()
    assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))
    model.to(torch.bfloat16)
    assert greedy(model, PROMPTS[0]).shape == codes.shape
    model.to(torch.float32)
    assert torch.equal(greedy(model, PROMPTS[0]), oracle(model, processor, PROMPTS[:1]))


class Doubled(nn.Module):
    """Stands for a layer that an adapter or a quantiser put in place of a matrix."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return 2 * self.inner(hidden)


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
@pytest.mark.parametrize("num_pictures", [1, 3])
def test_quantised_weights_are_drawn_with(folder, processor, name, num_pictures):
    torchao = pytest.importorskip("torchao.quantization", reason="needs the extra `quantize`")
    quantized = TorchAoConfig(getattr(torchao, name)())
    model = Janus4oForImageGeneration.from_pretrained(folder, quantization_config=quantized).eval()
    codes = greedy(model, PROMPTS[0], num_images_per_prompt=num_pictures)
    assert torch.equal(codes, oracle(model, processor, PROMPTS[:1]).expand(num_pictures, -1))
    model.uses_cuda_graph = True
    with pytest.raises(ValueError, match="quantised weights, which joins_kernels=True cannot read; pass False"):
        model.compile_generation()


@pytest.mark.parametrize("names", [("q_proj",), ("o_proj",), ("gate_proj", "down_proj")])
def test_replaced_projections_are_called(model, processor, names):
    plain = greedy(model, PROMPTS[0])
    for layer in model.model.language_model.layers:
        for name in names:
            owner = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
            setattr(owner, name, Doubled(getattr(owner, name)))
    codes = greedy(model, PROMPTS[0])
    assert torch.equal(codes, oracle(model, processor, PROMPTS[:1]))
    assert not torch.equal(codes, plain)


def test_hooks_are_called(model):
    called = []
    module = model.model.language_model.layers[0].mlp.down_proj
    module.register_forward_hook(lambda *_: called.append(1))
    greedy(model, PROMPTS[0])
    assert len(called) == model.config.num_image_tokens


class Forced:
    """Stands for a sampler: takes given codes (B, P), and keeps the logits they were to be drawn from."""

    def __init__(self, codes):
        self.codes, self.seen = codes, []

    def sample_token(self, logits):
        self.seen.append(logits)
        return self.codes[:, len(self.seen) - 1]


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("is_edit", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_bf16_predicts_what_the_plain_loop_does(batch, is_edit, is_shared):
    """Teacher-forced with the pictures that a trained model draws: greedy codes legitimately differ in bf16."""
    model, processor = load_checkpoint(TINY_JANUS_4O, dtype="bfloat16")
    model.share_prompt_from = 0
    prompt = "make the red circle blue" if is_edit else "a red circle on a gray background"
    images = [[picture(0)]] if is_edit else None
    options = {"guidance_scale": model.config.guidance_scale, "edit_freedom": 1.0}
    codes = model.generate_image(
        prompt, image=images, num_images_per_prompt=batch, output_type="codes", processor=processor, **options,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    guidance, forced = Guidance(options["guidance_scale"], options["edit_freedom"]), Forced(codes)
    times = (1, batch) if is_shared else (batch, 1)
    with torch.inference_mode():
        request = ImageRequest([prompt] * times[0], images and images * times[0])
        rows = model._guidance_rows(processor, request, guidance)
        model._sample_codes(rows, times[1], guidance, forced, None, False)
    expected, _ = oracle_logits(
        model, processor, [prompt] * batch, images and images * batch, guidance.scale, guidance.edit_freedom, codes
    )
    ours = torch.stack(forced.seen, 1)
    nll = [nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten()) for logits in (ours, expected)]
    assert abs(nll[0] - nll[1]) <= 1e-2


# ------------------------------------------------------------------ calls after calls


def test_a_callback_that_raises_leaves_the_next_call_clean(model):
    expected = greedy(model, PROMPTS[0])

    def fail(step, codes):
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        greedy(model, PROMPTS[0], callback_on_step_end=fail)
    assert torch.equal(greedy(model, PROMPTS[0]), expected)


def test_two_threads_draw_what_each_would_alone(model):
    expected = [greedy(model, prompt) for prompt in PROMPTS[:2]]
    model.model.language_model.layers[0].self_attn.q_proj.weight.data = model.model.language_model.layers[
        0
    ].self_attn.q_proj.weight.data.clone()  # the weights must be joined again, by whichever comes first
    drawn = {}

    def draw(number):
        drawn[number] = greedy(model, PROMPTS[number])

    threads = [threading.Thread(target=draw, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(drawn[number], expected[number]) for number in range(2))


GROWTH = """
import resource, sys
from sharegpt4o_image.janus4o import Janus4oForImageGeneration

model = Janus4oForImageGeneration.from_pretrained(sys.argv[1]).eval()
for number in range(60):
    model.generate_image("a heart", num_images_per_prompt=4, output_type="codes")
    if number == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_calls(folder):
    """The peak of a process of its own: fifty calls after ten."""
    grown = int(subprocess.check_output([sys.executable, "-c", GROWTH, str(folder)]))
    assert grown < 2_000  # KiB; one call's cache alone has 1,300


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of Linux's /proc")
def test_memory_is_what_was_computed():
    script = "import json, memory; print(json.dumps(memory.measured_rows(((8, 64),))))"
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    [row] = json.loads(subprocess.check_output([sys.executable, "-c", script], cwd=benchmarks))
    assert 0.9 < row["measured / computed"] < 1.1
