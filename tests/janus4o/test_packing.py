# SPDX-License-Identifier: Apache-2.0
"""Packed samples get what each gets alone, in every attention implementation, and do not see each other."""

import sys

import pytest
import torch
from torch import nn

from sharegpt4o_image.janus4o import Janus4oForImageGeneration
from sharegpt4o_image.janus4o.packing_janus4o import (
    PACKED_ATTENTION,
    PackedRow,
    has_varlen,
    packed_attention,
    packed_mask,
)
from sharegpt4o_image.training.tiny_model import NUM_CODES, tiny_config, tiny_processor, untrained_model

P = 64
LENGTHS = [5, 1, 9]  # tokens of the prompts


@pytest.fixture(scope="module")
def processor():
    return tiny_processor([])


@pytest.fixture(scope="module")
def model(processor):
    torch.manual_seed(0)
    return untrained_model(tiny_config(processor)).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 200, (1, sum(LENGTHS)), generator=generator)
    codes = torch.randint(NUM_CODES, (len(LENGTHS), P), generator=generator)
    return {"input_ids": ids, "prompt_lengths": torch.tensor(LENGTHS), "target_codes": codes}


def alone(model, batch):
    """The logits of each sample by itself, by plain SDPA."""
    model.set_attn_implementation({"text_config": "sdpa"})
    rows = zip(batch["input_ids"].split(LENGTHS, dim=1), batch["target_codes"], strict=True)
    with torch.no_grad():
        return torch.cat([model(input_ids=ids, target_codes=codes[None]).logits for ids, codes in rows])


def test_a_row_literally():
    row = PackedRow([2, 1], num_codes=3)
    prompts = torch.tensor([[[10.0], [11.0], [20.0]]])
    codes = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # the third code of a target is not put in
    assert row.interleave(prompts, codes)[0, :, 0].tolist() == [10, 11, 1, 2, 20, 3, 4]
    assert row.position_ids(torch.device("cpu")).tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    hidden = torch.arange(7.0)[None, :, None]
    assert row.predicting(hidden)[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    told = row.attention_kwargs(torch.device("cpu"))
    assert told["cu_seq_lens_q"].tolist() == told["cu_seq_lens_k"].tolist() == [0, 4, 7]
    assert told["max_length_q"] == told["max_length_k"] == 4


@pytest.mark.parametrize(
    "attention",
    ["sdpa", "eager", PACKED_ATTENTION, pytest.param("flex_attention", marks=pytest.mark.slow)],  # it compiles
)
def test_packed_logits_are_those_of_each_sample_alone(model, batch, attention):
    expected = alone(model, batch)
    model.set_attn_implementation({"text_config": attention})
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_ATTENTION])
@pytest.mark.parametrize("changed", [0, 1, 2])
def test_no_sample_sees_another(model, batch, attention, changed):
    model.set_attn_implementation({"text_config": attention})
    other = {key: value.clone() for key, value in batch.items()}
    start = sum(LENGTHS[:changed])
    other["input_ids"][0, start : start + LENGTHS[changed]] += 1
    other["target_codes"][changed] = (other["target_codes"][changed] + 1) % NUM_CODES
    with torch.no_grad():
        before, after = model(**batch).logits, model(**other).logits
    for sample in range(len(LENGTHS)):
        assert torch.equal(before[sample], after[sample]) == (sample != changed)


def test_a_code_does_not_see_what_follows(model, batch):
    model.set_attn_implementation({"text_config": PACKED_ATTENTION})
    other = batch | {"target_codes": batch["target_codes"].clone()}
    other["target_codes"][:, 40:] = 0
    with torch.no_grad():
        before, after = model(**batch).logits, model(**other).logits
    torch.testing.assert_close(before[:, :41], after[:, :41], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, 41:], after[:, 41:], atol=1e-3)


def test_grouped_queries():
    """Two heads of keys for four of queries, against every head written out."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 7, 8, generator=generator) for heads in (4, 2, 2))
    attended, _ = packed_attention(nn.Module(), query, key, value, None, scaling=0.3, sample_lengths=[4, 3])
    for head in range(4):
        for part in (slice(0, 4), slice(4, 7)):
            scores = 0.3 * query[0, head, part] @ key[0, head // 2, part].T
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            expected = scores.softmax(-1) @ value[0, head // 2, part]
            torch.testing.assert_close(attended[0, part, head], expected)


def test_in_autocast_it_is_close_to_fp32(model, batch):
    model.set_attn_implementation({"text_config": PACKED_ATTENTION})
    with torch.no_grad():
        exact = model(**batch).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(**batch)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, exact, atol=0.02, rtol=0)


def test_without_borders_it_is_sdpa(model):
    """Padded batches, text, and generation with a cache go on as before."""
    ids = torch.randint(10, 200, (2, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    codes = torch.randint(NUM_CODES, (2, P))
    found = []
    for attention in ("sdpa", PACKED_ATTENTION):
        model.set_attn_implementation({"text_config": attention})
        with torch.no_grad():
            image = model(input_ids=ids, attention_mask=mask, target_codes=codes).logits
            text = model(input_ids=ids).logits
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
        answers = model.generate(input_ids=ids, attention_mask=mask, **options)
        static = model.generate(input_ids=ids, cache_implementation="static", **options)
        found.append((image, text, answers, static))
    for plain, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, plain)


def test_a_saved_model_does_not_ask_for_it(model, tmp_path):
    model.set_attn_implementation({"text_config": PACKED_ATTENTION})
    model.save_pretrained(tmp_path)
    assert PACKED_ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = Janus4oForImageGeneration.from_pretrained(tmp_path)
    assert loaded.config.text_config._attn_implementation == "sdpa"


def test_a_row_that_does_not_add_up_is_refused(model, batch):
    with pytest.raises(ValueError, match=r"packed row is \(1, L\) ids with L the sum of prompt_lengths"):
        model(**batch | {"prompt_lengths": torch.tensor([5, 1, 8])})
    too_long = torch.cat([batch["target_codes"], batch["target_codes"][:, :1]], dim=1)
    with pytest.raises(ValueError, match=r"target_codes has shape \(3, 65\), expected 3 rows of 64 codes"):
        model(**batch | {"target_codes": too_long})


def test_older_gpus_and_older_pytorch_go_sample_by_sample(monkeypatch):
    has_varlen_now = has_varlen.__wrapped__  # without its cache
    gpu = torch.device("cuda", 0)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert has_varlen_now(gpu) is expected
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert has_varlen_now(gpu) is False
    assert has_varlen(torch.device("cpu")) is False


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_variable_length_flash_attention(model, batch, autocast):
    """On a GPU, in half precision by weights or by autocast, the kernel gives what SDPA gives sample by sample."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 17, 64, generator=generator).cuda() for heads in (4, 2, 2))
    row = PackedRow([4, 6], num_codes=4)
    borders = row.attention_kwargs(torch.device("cuda"))
    exact, _ = packed_attention(nn.Module(), query, key, value, None, **borders)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        inputs = (query, key, value.bfloat16()) if autocast else (x.bfloat16() for x in (query, key, value))
        half, _ = packed_attention(nn.Module(), *inputs, None, **borders)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0)


def test_a_packed_row_has_no_mask_of_all_its_tokens_by_all():
    """Where transformers must not leave the causal mask out, only a row as long as its keys is taken for packed."""
    device = torch.device("cpu")
    assert packed_mask(1, 7, 7, allow_is_causal_skip=False, device=device) is None
    in_a_static_cache = packed_mask(1, 1, 7, q_offset=2, allow_is_causal_skip=False, device=device)
    assert in_a_static_cache.tolist() == [[[[True] * 3 + [False] * 4]]]
    padded = packed_mask(1, 3, 3, attention_mask=torch.tensor([[False, True, True]]), device=device)
    assert padded[0, 0, 1].tolist() == [False, True, False]
