# SPDX-License-Identifier: Apache-2.0
"""Ours against the outputs of the public reference implementation on a small checkpoint of the original format."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from sharegpt4o_image.builders.converter import convert
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.modeling_janus4o import IGNORED_CODE
from sharegpt4o_image.janus4o.sampling_janus4o import Guidance

GOLDENS = Path(__file__).parents[3] / "shared" / "goldens" / "tiny_deepseek"

pytestmark = pytest.mark.skipif(not GOLDENS.is_dir(), reason="the reference outputs are not beside this clone")


@pytest.fixture(scope="module")
def converted_dir(tmp_path_factory):
    target = tmp_path_factory.mktemp("converted")
    convert(GOLDENS, target)
    return target


@pytest.fixture(scope="module")
def model(converted_dir):
    return Janus4oForImageGeneration.from_pretrained(converted_dir).eval()


@pytest.fixture(scope="module")
def processor(converted_dir):
    return Janus4oProcessor.from_pretrained(converted_dir)


@pytest.fixture(scope="module")
def expected():
    return load_file(GOLDENS / "expected.safetensors")


@pytest.fixture(scope="module")
def prompts():
    return json.loads((GOLDENS / "expected.json").read_text(encoding="utf-8"))["prompts"]


@pytest.fixture(scope="module")
def source():
    return Image.open(GOLDENS / "source.png")


def token_nll(logits, codes):
    return F.cross_entropy(logits[0], codes[0].long(), reduction="none")


def test_input_ids_of_both_tasks_and_all_rows(processor, prompts, source, expected):
    text_to_image = processor.prepare_image_generation([prompts["t2i"]["prompt"]])
    null = processor.unconditional_ids(text_to_image["input_ids"], text_to_image["attention_mask"])
    assert torch.equal(torch.cat([text_to_image["input_ids"], null]), expected["t2i_input_ids"].long())
    edit = processor.prepare_image_generation([prompts["edit"]["prompt"]], [[source]])
    null = processor.unconditional_ids(edit["input_ids"], edit["attention_mask"])
    rows = torch.cat([edit["input_ids"], edit["input_ids"], null])
    assert torch.equal(rows, expected["edit_input_ids"].long())


def test_pixels_codes_and_decoded_picture(model, processor, source, expected):
    pixels = processor.source_pixels([source])
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-6, rtol=0)
    assert torch.equal(model.encode_image(pixels), expected["source_codes"].long())
    decoded = model.decode_image(expected["target_codes"].long())
    torch.testing.assert_close(decoded, expected["decoded_target"], atol=1e-3, rtol=0)


def test_semantic_and_code_embeddings(model, expected):
    with torch.no_grad():
        semantic = model.model.get_image_features(expected["pixel_values"]).pooler_output
        torch.testing.assert_close(semantic, expected["semantic_embeds"], atol=1e-4, rtol=0)
        code_embeds = model.embed_codes(expected["source_codes"].long())
    torch.testing.assert_close(code_embeds, expected["code_embeds"], atol=1e-5, rtol=0)


def test_prompt_embeddings_of_every_row(model, processor, prompts, source, expected):
    batch = processor.prepare_image_generation([prompts["edit"]["prompt"]], [[source]])
    ids, pixels = batch["input_ids"], batch["source_pixel_values"]
    no_codes = torch.full_like(expected["source_codes"].long(), IGNORED_CODE)
    with torch.no_grad():
        rows = [model.embed_prompt(ids, pixels), model.embed_prompt(ids, pixels, no_codes)]
        rows.append(model.embed_prompt(processor.unconditional_ids(ids, batch["attention_mask"])))
    sums = torch.cat(rows).double().sum((1, 2)).float()
    torch.testing.assert_close(sums, expected["edit_inputs_embeds_checksum"].float(), atol=1e-2, rtol=0)


def test_the_answer_to_a_question_about_a_picture(model, processor, prompts, source, expected):
    content = prompts["understand"]["prompt"]
    batch = processor(text=f"<|User|>: {content}\n\n<|Assistant|>:", images=source)
    assert torch.equal(batch["input_ids"], expected["understand_input_ids"].long())
    question = content.removeprefix("<image_placeholder>").strip()
    message = {"role": "user", "content": [{"type": "image", "image": source}, {"type": "text", "text": question}]}
    chat = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(chat["input_ids"], batch["input_ids"])
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    torch.testing.assert_close(logits, expected["understand_last_logits"], atol=1e-3, rtol=0)
    answer = model.generate(**batch, max_new_tokens=16, do_sample=False)
    new_ids = answer[:, batch["input_ids"].shape[1] :] if answer.shape[1] > 16 else answer
    assert torch.equal(new_ids, expected["understand_greedy_ids"].long())


def test_text_to_image_nll_and_loss(model, processor, prompts, expected):
    codes = expected["target_codes"].long()
    batch = processor.prepare_image_generation([prompts["t2i"]["prompt"]])
    null_ids = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        conditional = model(**batch, target_codes=codes)
        unconditional = model(input_ids=null_ids, target_codes=codes).logits
    nll = expected["t2i_token_nll_cond"]
    torch.testing.assert_close(token_nll(conditional.logits, codes), nll, atol=1e-3, rtol=0)
    torch.testing.assert_close(conditional.loss, nll.mean(), atol=1e-4, rtol=0)
    guided = Guidance(5.0, 0.0).guide({"cond": conditional.logits, "uncond": unconditional})
    torch.testing.assert_close(token_nll(guided, codes), expected["t2i_token_nll_guided"], atol=1e-3, rtol=0)


def test_edit_nll_of_every_row_and_guidance(model, processor, prompts, source, expected):
    codes = expected["target_codes"].long()
    batch = processor.prepare_image_generation([prompts["edit"]["prompt"]], [[source]])
    null_ids = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    no_codes = torch.full_like(expected["source_codes"].long(), IGNORED_CODE)
    with torch.no_grad():
        rows = {
            "cond": model(**batch, target_codes=codes).logits,
            "part": model(**batch, source_codes=no_codes, target_codes=codes).logits,
            "uncond": model(input_ids=null_ids, target_codes=codes).logits,
        }
    for branch, name in (("cond", "full"), ("part", "part"), ("uncond", "uncond")):
        nll = token_nll(rows[branch], codes)
        torch.testing.assert_close(nll, expected[f"edit_token_nll_{name}"], atol=1e-3, rtol=0)
    for freedom in (0, 1, 5):
        nll = token_nll(Guidance(5.0, freedom).guide(rows), codes)
        torch.testing.assert_close(nll, expected[f"edit_token_nll_guided_s{freedom}"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_greedy_codes(model, prompts, source, expected, task):
    codes = model.generate_image(
        prompts[task]["prompt"],
        image=source if task == "edit" else None,
        guidance_scale=5.0,
        edit_freedom=5.0,
        do_sample=False,
        output_type="codes",
    )
    assert torch.equal(codes[:, :48], expected[f"{task}_greedy_codes"].long())
