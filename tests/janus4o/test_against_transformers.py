# SPDX-License-Identifier: Apache-2.0
"""Against transformers' own Janus with the same weights: equal where it is right, and the table of `docs/model.md`."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_checkpoints import save_transformers
from transformers import JanusForConditionalGeneration, JanusProcessor

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_transformers(tmp_path_factory.mktemp("theirs") / "janus")


@pytest.fixture(scope="module")
def theirs(folder):
    model = JanusForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = JanusProcessor.from_pretrained(folder).tokenizer
    model.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@pytest.fixture(scope="module")
def ours(folder):
    return Janus4oForImageGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return Janus4oProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def inputs(processor):
    return processor.prepare_image_generation(["a red circle on a gray background", "a star"])


def greedy(model, inputs, **options):
    options = {"generation_mode": "image", "do_sample": False, "guidance_scale": 5.0} | options
    return model.generate(**inputs, **options)


def picture(seed):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def test_greedy_text_to_image_codes_are_equal(theirs, ours, processor, inputs):
    expected = greedy(theirs, inputs)
    codes = ours.generate_image(
        ["a red circle on a gray background", "a star"], guidance_scale=5.0, do_sample=False, output_type="codes"
    )
    assert torch.equal(codes, expected)
    assert len(set(expected[0].tolist())) > 5  # the weights make them differ from step to step


def test_text_answers_are_equal(theirs, ours, processor):
    text = "<|User|>: <image_placeholder>\nWhat is it?\n\n<|Assistant|>:"
    batch = processor(text=text, images=picture(0))
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(ours.generate(**batch, **options), theirs.generate(**batch, **options))


def test_no_attention_mask(theirs, ours, inputs):
    row = {"input_ids": inputs["input_ids"][:1]}
    with pytest.raises(AttributeError):
        greedy(theirs, row)
    codes = torch.zeros(1, 64, dtype=torch.long)
    mask = torch.ones_like(row["input_ids"])
    with torch.no_grad():
        without, given = ours(**row, target_codes=codes), ours(**row, attention_mask=mask, target_codes=codes)
    assert torch.equal(without.logits, given.logits)


def test_guidance_1(theirs, ours, processor, inputs):
    with pytest.raises(RuntimeError):
        greedy(theirs, inputs, guidance_scale=1.0)
    codes = ours.generate_image("a star", guidance_scale=1.0, do_sample=False, output_type="codes")
    with torch.no_grad():
        logits = ours(**processor.prepare_image_generation(["a star"]), target_codes=codes).logits
    assert torch.equal(logits.argmax(-1), codes)


def test_image_conditioning(theirs, ours, processor):
    first, second = picture(1), picture(2)
    batches = [processor(text="make it red", images=one, generation_mode="image") for one in (first, second)]
    ignored = [
        greedy(
            theirs, {**{k: b[k] for k in ("input_ids", "attention_mask")}, "pixel_values": b["source_pixel_values"]}
        )
        for b in batches
    ]
    assert torch.equal(*ignored)  # two sources, one result
    options = {"guidance_scale": 5.0, "edit_freedom": 1.0, "do_sample": False, "output_type": "codes"}
    edits = [ours.generate_image("make it red", image=one, **options) for one in (first, second)]
    assert not torch.equal(*edits)


def test_an_instruction_with_a_picture(folder, processor):
    """Theirs wants a placeholder for the picture and lays out one block; ours lays out both blocks itself."""
    with pytest.raises(ValueError, match="image_placeholder"):
        JanusProcessor.from_pretrained(folder)(text="make it red", images=[picture(1)], generation_mode="image")
    image = processor.tokenizer.convert_tokens_to_ids("<image_placeholder>")
    batch = processor(text="make it red", images=[picture(1)], generation_mode="image")
    assert (batch["input_ids"] == image).sum() == 64


def test_vq_encoding(theirs, ours, processor):
    pixels = processor.source_pixels([picture(seed) for seed in range(8)])
    with torch.no_grad():
        vqmodel = theirs.model.vqmodel
        their_codes = vqmodel.encode(pixels).image_tokens.view(8, -1)
        latents = vqmodel.quant_conv(vqmodel.encoder(pixels)).permute(0, 2, 3, 1).flatten(1, 2)
        # the reference VQ-16: the code whose direction is nearest
        cosine = F.normalize(latents, dim=-1) @ F.normalize(vqmodel.quantize.embedding.weight, dim=-1).T
    assert torch.equal(ours.encode_image(pixels), cosine.argmax(-1))
    assert (their_codes != cosine.argmax(-1)).float().mean() > 0.1


def test_unconditional_row_of_an_edit(theirs, processor):
    """Theirs leaves every begin-of-image token visible to the unconditional branch, ours the last alone."""
    batch = processor.prepare_image_generation(["make it red"], [[picture(1)]])
    boi = processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")
    null = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    assert (null == boi).sum() == 1
    seen = []
    embed = theirs.get_input_embeddings()
    handle = embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    greedy(theirs, {key: batch[key] for key in ("input_ids", "attention_mask")})
    handle.remove()
    assert (seen[0][1] == boi).sum() == 3


def test_several_greedy_pictures(theirs, ours, inputs):
    with pytest.raises(ValueError, match="num_return_sequences"):
        greedy(theirs, inputs, num_return_sequences=2)
    codes = ours.generate_image("a star", num_images_per_prompt=2, do_sample=False, output_type="codes")
    assert torch.equal(codes[0], codes[1])


def test_special_tokens_in_a_prompt(folder, processor):
    boi = processor.tokenizer.convert_tokens_to_ids("<begin_of_image>")
    prompt = "a sign that says <begin_of_image>"
    theirs = JanusProcessor.from_pretrained(folder)(text=prompt, generation_mode="image", return_tensors="pt")
    assert (theirs["input_ids"] == boi).sum() == 2
    assert (processor(text=prompt, generation_mode="image")["input_ids"] == boi).sum() == 1


def test_source_sizes(folder, processor):
    """68 of 100 rows become 21.76 of 32."""
    pictures = [Image.new("RGB", (100, height), "red") for height in (61, 65, 68)]
    theirs = JanusProcessor.from_pretrained(folder).image_processor(images=pictures, return_tensors="pt")
    ours = processor.source_pixels(pictures)
    rows = [(pixels[:, 0, :, 16] > 0.9).sum(1).tolist() for pixels in (theirs["pixel_values"], ours)]
    assert rows == [[20, 21, 22], [19, 20, 21]]


def test_sampling_is_cut_off_at_50_codes_by_default(theirs, inputs):
    """Ours draws from the whole softmax unless asked (`test_generation.py`); theirs fills in top_k = 50."""
    config, _ = theirs._prepare_generation_config(None, do_sample=True)
    assert config.top_k == 50
