# SPDX-License-Identifier: Apache-2.0
"""`generate_image`: the distribution it draws from, what a picture depends on, and what it refuses."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from small_checkpoints import save_ours, small_model, small_processor

from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.sampling_janus4o import Guidance

NUM_CODES = 64
PROMPTS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("circle", "star", "heart", "big square")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ours(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def model(folder):
    return Janus4oForImageGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return Janus4oProcessor.from_pretrained(folder)


def picture(seed, size=(48, 48)):
    generator = random.Random(seed)
    return Image.new("RGB", size, tuple(generator.randrange(256) for _ in range(3)))


def codes_of(model, prompt, **options):
    return model.generate_image(prompt, **({"output_type": "codes", "guidance_scale": 3.0} | options))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ the distribution

SAMPLING = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.7},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8},
]


def warped(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution to draw from, written out: temperature, then the top k, then the top p of what is left."""
    logits = logits.double() / temperature
    order = logits.argsort(descending=True)
    kept = order[:top_k]
    probabilities = logits[kept].softmax(-1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities
        kept = kept[before < top_p]
    result = torch.zeros_like(logits)
    result[kept] = logits[kept].softmax(-1)
    return result


def first_logits(model, processor, prompt, guidance_scale):
    batch = processor.prepare_image_generation([prompt])
    null = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    code = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        cond = model(**batch, target_codes=code).logits[:, 0]
        uncond = model(input_ids=null, target_codes=code).logits[:, 0]
    return uncond[0] + guidance_scale * (cond - uncond)[0]


def draws(model, num_draws, **sampling):
    """The first codes of `num_draws` pictures of one prompt."""
    parts = [
        codes_of(
            model,
            "a red circle",
            num_images_per_prompt=num_draws // 4,
            generator=seeded(part),
            callback_on_step_end=lambda step, codes: True,
            **sampling,
        )
        for part in range(4)
    ]
    return torch.cat(parts)[:, 0]


def p_value(observed, probabilities):
    """Chi-square of counts against probabilities; cells that expect fewer than 5 draws are put together."""
    expected = probabilities * observed.sum()
    small = expected < 5
    counts = torch.cat([observed[~small], observed[small].sum()[None]])
    wanted = torch.cat([expected[~small], expected[small].sum()[None]])
    if wanted[-1] < 1e-9:
        assert counts[-1] == 0
        counts, wanted = counts[:-1], wanted[:-1]
    return chisquare(counts.numpy(), (wanted * counts.sum() / wanted.sum()).numpy()).pvalue


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_codes_are_drawn_from_the_guided_softmax(model, processor, sampling):
    logits = first_logits(model, processor, "a red circle", 3.0)
    observed = torch.bincount(draws(model, 20_000, **sampling), minlength=NUM_CODES).double()
    right = warped(logits, **sampling)
    assert observed[right == 0].sum() == 0
    assert p_value(observed, right) > 1e-3
    # the same counts tell a slightly wrong temperature apart
    wrong = warped(logits * 1.1, **sampling)
    assert p_value(observed, wrong) < 1e-3


def test_guidance_formula():
    logits = {name: torch.tensor([[value]]) for name, value in (("cond", 3.0), ("part", 1.0), ("uncond", 0.5))}
    # (3 + 5 * 1) / 6 = 4/3;  0.5 + 2 * (4/3 - 0.5)
    assert Guidance(2.0, 5.0).guide(logits).item() == pytest.approx(0.5 + 2 * (4 / 3 - 0.5))
    assert Guidance(0.0, 5.0).guide({"uncond": logits["uncond"]}).item() == 0.5


# ------------------------------------------------------------------ what a picture depends on


def test_a_picture_depends_on_its_generator_and_prompt_alone(model):
    generators = [seeded(seed) for seed in range(8)]
    together = codes_of(model, PROMPTS, generator=generators)
    for number in (0, 3, 7):
        alone = codes_of(model, PROMPTS[number], generator=seeded(number))
        assert torch.equal(alone[0], together[number])
    four = codes_of(model, PROMPTS[3], num_images_per_prompt=4, generator=[seeded(seed) for seed in (9, 3, 8, 7)])
    assert torch.equal(four[1], together[3])
    assert len({tuple(row.tolist()) for row in four}) == 4


def test_an_edit_depends_on_its_generator_prompt_and_source_alone(model):
    sources = [picture(seed) for seed in range(8)]
    together = codes_of(model, PROMPTS, image=sources, edit_freedom=2.0, generator=[seeded(s) for s in range(8)])
    alone = codes_of(model, PROMPTS[5], image=sources[5], edit_freedom=2.0, generator=seeded(5))
    assert torch.equal(alone[0], together[5])
    other = codes_of(model, PROMPTS[5], image=sources[6], edit_freedom=2.0, generator=seeded(5))
    assert not torch.equal(alone, other)


def test_a_batch_may_mix_edits_and_drawings(model):
    mixed = codes_of(model, PROMPTS[:2], image=[[picture(1)], []], do_sample=False)
    assert torch.equal(mixed[:1], codes_of(model, PROMPTS[0], image=picture(1), do_sample=False))
    assert torch.equal(mixed[1:], codes_of(model, PROMPTS[1], do_sample=False))


def test_the_same_seed_gives_the_same_pictures(model):
    first, again = (codes_of(model, "a star", num_images_per_prompt=2, generator=seeded(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_greedy_codes_are_what_a_whole_forward_pass_predicts(model, processor):
    """Cache against no cache, one branch: guidance 1."""
    codes = codes_of(model, PROMPTS[:2], do_sample=False, guidance_scale=1.0)
    with torch.no_grad():
        logits = model(**processor.prepare_image_generation(PROMPTS[:2]), target_codes=codes).logits
    assert torch.equal(logits.argmax(-1), codes)


def test_guidance_0_ignores_the_prompt_and_runs_one_branch(model):
    rows = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    # as long in tokens, since the unconditional row has the prompt's length
    first = codes_of(model, "a red circle", do_sample=False, guidance_scale=0.0)
    second = codes_of(model, "a blue heart", do_sample=False, guidance_scale=0.0)
    third = codes_of(model, "a red circle", do_sample=False, guidance_scale=1.0)
    handle.remove()
    assert set(rows) == {1}
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_negative_prompt_is_what_guidance_leads_away_from(model, processor):
    codes = codes_of(model, "a red circle", negative_prompt="a blue star", do_sample=False, guidance_scale=2.0)
    with torch.no_grad():
        red, blue = (
            model(**processor.prepare_image_generation([prompt]), target_codes=codes).logits
            for prompt in ("a red circle", "a blue star")
        )
    assert torch.equal((blue + 2.0 * (red - blue)).argmax(-1), codes)


def test_edit_freedom_weighs_the_rows_with_and_without_source_codes(model, processor):
    source = picture(2)
    codes = codes_of(model, "make it red", image=source, edit_freedom=3.0, guidance_scale=1.0, do_sample=False)
    batch = processor.prepare_image_generation(["make it red"], [[source]])
    no_codes = torch.full((1, model.config.num_image_tokens), -100)
    with torch.no_grad():
        full = model(**batch, target_codes=codes).logits
        part = model(**batch, source_codes=no_codes, target_codes=codes).logits
    assert torch.equal(((full + 3.0 * part) / 4.0).argmax(-1), codes)


def test_an_edit_weighs_three_rows_and_computes_no_more_than_it_needs(model, processor):
    source, rows = picture(2), []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    options = {"image": source, "do_sample": False}
    codes = codes_of(model, "make it red", guidance_scale=2.0, edit_freedom=3.0, **options)
    widths = {tuple(set(rows))}
    for scale, freedom in ((2.0, 0.0), (1.0, 3.0), (1.0, 0.0), (0.0, 3.0)):
        rows.clear()
        codes_of(model, "make it red", guidance_scale=scale, edit_freedom=freedom, **options)
        widths.add((scale, freedom, *set(rows)))
    handle.remove()
    assert widths == {(3,), (2.0, 0.0, 2), (1.0, 3.0, 2), (1.0, 0.0, 1), (0.0, 3.0, 1)}
    batch = processor.prepare_image_generation(["make it red"], [[source]])
    no_codes = torch.full((1, model.config.num_image_tokens), -100)
    null_ids = processor.unconditional_ids(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad():
        full = model(**batch, target_codes=codes).logits
        part = model(**batch, source_codes=no_codes, target_codes=codes).logits
        null = model(input_ids=null_ids, target_codes=codes).logits
    assert torch.equal((null + 2.0 * ((full + 3.0 * part) / 4.0 - null)).argmax(-1), codes)


@pytest.mark.parametrize("num_pictures", [1, 2])
@pytest.mark.parametrize("is_edit", [False, True])
def test_guidance_for_a_part_of_the_codes(model, processor, num_pictures, is_edit):
    model.share_prompt_from = 0
    options = {"do_sample": False, "guidance_scale": 3.0, "edit_freedom": 1.0, "num_images_per_prompt": num_pictures}
    prompts, sources = (PROMPTS[:2], [[picture(1)], [picture(2)]] if is_edit else None)
    whole = codes_of(model, prompts, image=sources, **options)
    codes = codes_of(model, prompts, image=sources, guidance_until=0.25, **options)
    assert torch.equal(codes[:, :16], whole[:, :16])
    assert not torch.equal(codes, whole)
    batch = processor.prepare_image_generation(prompts, sources)
    first = codes[::num_pictures]
    with torch.no_grad():
        logits = model(**batch, target_codes=first).logits
        if is_edit:
            no_codes = torch.full((2, 64), -100)
            logits = (logits + model(**batch, source_codes=no_codes, target_codes=first).logits) / 2
    assert torch.equal(logits.argmax(-1)[:, 16:], first[:, 16:])


def test_several_source_images_stand_in_order(model, processor):
    first, second = picture(1), picture(2)
    batch = processor.prepare_image_generation(["join them"], [[first, second]])
    swapped = processor.prepare_image_generation(["join them"], [[second, first]])
    assert torch.equal(batch["input_ids"], swapped["input_ids"])
    with torch.no_grad():
        embeds = model.embed_prompt(batch["input_ids"], batch["source_pixel_values"])
        one = processor.prepare_image_generation(["join them"], [[first]])
        alone = model.embed_prompt(one["input_ids"], one["source_pixel_values"])
    block = 2 * (model.config.num_image_tokens + 2)
    start = 3  # BOS, user tag, ": "
    torch.testing.assert_close(embeds[:, start : start + block], alone[:, start : start + block])
    results = [
        codes_of(model, "join them", image=[images], do_sample=False)
        for images in ([first, second], [second, first], [first])
    ]
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# ------------------------------------------------------------------ interface


def test_the_vocabulary_head_is_never_used_for_pictures(model, processor):
    def fail(*_):
        raise AssertionError("lm_head was used")

    handle = model.lm_head.register_forward_hook(fail)
    try:
        codes = codes_of(model, "a red circle", image=picture(0))
        model(**processor.prepare_image_generation(["a red circle"]), target_codes=codes)
    finally:
        handle.remove()


def test_output_types_and_sizes(model):
    [drawn] = model.generate_image("a red circle")
    assert drawn.size == (32, 32)
    pixels = model.generate_image(["a red circle"] * 2, output_type="pt")
    assert pixels.shape == (2, 3, 32, 32)
    wide = picture(0, (90, 45))
    sizes = {
        size: model.generate_image("make it red", image=wide, output_size=size)[0].size
        for size in ("model", "aspect_ratio", "source")
    }
    assert sizes == {"model": (32, 32), "aspect_ratio": (32, 16), "source": (90, 45)}


def test_a_callback_sees_every_step_and_may_stop(model):
    seen = []
    codes = codes_of(model, "a star", callback_on_step_end=lambda step, codes: seen.append((step, codes.shape)))
    assert seen == [(step, (1, step + 1)) for step in range(model.config.num_image_tokens)]
    assert codes.shape == (1, 64)

    stopped = codes_of(model, "a star", generator=seeded(1), callback_on_step_end=lambda step, codes: step == 15)
    whole = codes_of(model, "a star", generator=seeded(1))
    assert torch.equal(stopped, whole[:, :16])
    preview = model.preview_image(stopped)
    assert (preview[:, :, 8:] == 0).all()  # 16 codes are the upper two of eight rows of cells, 4 pixels each
    assert (preview[:, :, :8] != 0).any()
    [drawn] = model.generate_image("a star", callback_on_step_end=lambda step, codes: step == 15)
    assert drawn.getpixel((31, 31)) == (127, 127, 127)


def test_a_progress_bar_is_shown_on_demand(model, capsys):
    codes_of(model, "a star")
    assert capsys.readouterr().err == ""
    codes_of(model, "a star", progress_bar=True)
    captured = capsys.readouterr()
    assert "Drawing" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_draw_and_keep_the_codes_of_fp32(folder, model, processor, dtype):
    other = Janus4oForImageGeneration.from_pretrained(folder, dtype=dtype)
    assert other.dtype == dtype
    pixels = processor.source_pixels([picture(0), Image.linear_gradient("L")])
    assert torch.equal(other.encode_image(pixels), model.encode_image(pixels))
    [drawn] = other.generate_image("make it red", image=picture(0), guidance_scale=3.0)
    assert drawn.size == (32, 32)


def test_autocast_draws_and_keeps_the_codes_of_fp32(model, processor):
    pixels = processor.source_pixels([Image.linear_gradient("L")])
    codes = model.encode_image(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_image(pixels), codes)
        assert torch.equal(model.decode_image(codes), model.decode_image(codes))
        assert model.decode_image(codes).dtype == torch.float32
        assert model.generate_image("make it red", image=picture(0), output_type="codes").shape == (1, 64)


def test_a_model_without_a_checkpoint_needs_a_processor():
    processor = small_processor()
    model = small_model(processor)
    with pytest.raises(ValueError, match="not loaded from a checkpoint; pass processor="):
        model.generate_image("a star")
    assert len(model.generate_image("a star", processor=processor)) == 1


def test_drawing_while_training_uses_the_cache(folder):
    model = Janus4oForImageGeneration.from_pretrained(folder)
    expected = codes_of(model, "a red circle", do_sample=False)
    model.train()
    model.activation_checkpointing_enable()
    assert torch.equal(codes_of(model, "a red circle", do_sample=False), expected)
    assert model.training


def test_an_image_tokenizer_in_half_precision_is_warned_of(folder, processor, caplog):
    model = Janus4oForImageGeneration.from_pretrained(folder).to(torch.bfloat16)
    model.encode_image(processor.source_pixels([picture(0)]))
    assert "The image tokenizer is in torch.bfloat16" in caplog.text


def test_loading_the_processor_runs_no_code_that_was_not_trusted(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "processing_janus4o.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    path.write_text(json.dumps(config))
    model = Janus4oForImageGeneration.from_pretrained(copy)
    with contextlib.suppress(ValueError):
        model.generate_image("a star", output_type="codes")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ refusals

REFUSALS = {
    "empty prompt": ({"prompt": " "}, "A prompt is empty"),
    "no prompt": ({"prompt": []}, "A prompt is empty"),
    "temperature 0": ({"temperature": 0}, "temperature is 0; it must be above 0"),
    "negative temperature": ({"temperature": -1.0}, "temperature is -1.0; it must be above 0"),
    "top_p above 1": ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
    "top_p 0": ({"top_p": 0.0}, "top_p is 0.0"),
    "negative top_k": ({"top_k": -1}, "top_k is -1"),
    "no pictures": ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
    "generators": (
        {"generator": [torch.Generator(), torch.Generator()], "num_images_per_prompt": 3},
        "Got 2 generators for 3 pictures",
    ),
    "guidance": ({"guidance_scale": -1.0}, "guidance_scale is -1.0; it must be 0 or more"),
    "guidance until": ({"guidance_until": 0.0}, "guidance_until is 0.0; it must be above 0 and at most 1"),
    "edit freedom": ({"edit_freedom": float("nan")}, "edit_freedom is nan; it must be 0 or more"),
    "output type": ({"output_type": "np"}, "output_type is 'np'; choose"),
    "output size": ({"output_size": "big"}, "output_size is 'big'; choose"),
    "images": ({"prompt": ["a", "b", "c"], "image": [picture(0), picture(1)]}, "Got 2 images for 3 prompts"),
    "image lists": ({"prompt": ["a", "b"], "image": [[picture(0)]]}, "Got 1 lists of source images for 2 prompts"),
    "negative prompts": ({"prompt": ["a", "b"], "negative_prompt": ["x"] * 3}, "Got 3 negative prompts for 2 prompts"),
    "generator type": ({"generator": 7}, "generator is no torch.Generator; give torch.Generator"),
    "prompt type": ({"prompt": 3}, "prompt is a int; give a string or a list of strings"),
    "empty image list": ({"image": []}, "image is an empty list; leave it out"),
    "image type": ({"image": 3}, "image is a int; give a PIL image"),
    "image item": ({"image": [3]}, "A source image is a int; give a PIL image or a path"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_argument_is_refused_in_one_sentence(model, case):
    arguments, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        model.generate_image(**({"prompt": "a star"} | arguments))


def test_codes_and_pixels_of_the_wrong_shape_or_range(model, processor):
    batch = processor.prepare_image_generation(["a star"])
    codes = torch.zeros(1, 64, dtype=torch.long)
    with pytest.raises(ValueError, match=r"codes has codes from 0 to 64; the codebook has 0 to 63"):
        model.decode_image(codes.index_fill(1, torch.tensor([5]), NUM_CODES))
    with pytest.raises(ValueError, match=r"codes has shape \(1, 63\), expected \(B, 64\)"):
        model.decode_image(codes[:, :-1])
    with pytest.raises(ValueError, match=r"codes has shape \(1, 65\), expected \(B, n\) with n from 1 to 64"):
        model.preview_image(torch.cat([codes, codes[:, :1]], 1))
    with pytest.raises(ValueError, match=r"target_codes has shape \(2, 64\), expected 1 rows"):
        model(**batch, target_codes=torch.cat([codes, codes]))
    with pytest.raises(ValueError, match=r"source_codes has shape \(1, 64\), expected \(0, 64\)"):
        model(**batch, source_codes=codes)
    with pytest.raises(ValueError, match=r"target_codes has codes from -1 to 0"):
        model(**batch, target_codes=codes.index_fill(1, torch.tensor([5]), -1))
    with pytest.raises(ValueError, match=r"pixel_values has shape \(1, 3, 16, 32\), expected \(B, 3, 32, 32\)"):
        model.encode_image(torch.zeros(1, 3, 16, 32))
    edit = processor.prepare_image_generation(["a star"], [[picture(0)]])
    with pytest.raises(ValueError, match=r"source_codes has codes from 0 to 99"):
        model(**edit, source_codes=codes.index_fill(1, torch.tensor([5]), 99), target_codes=codes)
    with pytest.raises(ValueError, match="room for 0 source images and 0 source code blocks, but 1 source images"):
        model(**batch, source_pixel_values=edit["source_pixel_values"], target_codes=codes)
    two = torch.cat([edit["source_pixel_values"]] * 2)
    with pytest.raises(ValueError, match="room for 1 source images and 1 source code blocks, but 2 source images"):
        model(**(dict(edit) | {"source_pixel_values": two}), target_codes=codes)


def test_offloaded_weights_are_refused(folder, processor, tmp_path):
    parts = ("vision_model", "aligner", "vqmodel", "generation_embeddings", "generation_aligner", "generation_head")
    device_map = {"lm_head": "cpu", "model.language_model": "disk"} | {f"model.{part}": "cpu" for part in parts}
    model = Janus4oForImageGeneration.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path).eval()
    with pytest.raises(ValueError, match=r"weight model.language_model.\S+ is offloaded to the disk or host memory"):
        codes_of(model, PROMPTS[0], processor=processor)
