# SPDX-License-Identifier: Apache-2.0
"""Conversion between the original format, transformers' Janus and ours: every tensor, every shard, every refusal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import save_original, save_ours, save_transformers, small_processor, split
from typer.testing import CliRunner

from sharegpt4o_image.builders.converter import (
    check_fit,
    config_from_original,
    convert,
    expected_original,
    local_checkpoint,
    model_on_meta,
)
from sharegpt4o_image.builders.original_format import ToOriginal, to_ours
from sharegpt4o_image.cli import app
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

RELEASED = Path(__file__).parents[3] / "shared" / "goldens" / "janus_pro_state_dict.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_original(tmp_path_factory.mktemp("original") / "checkpoint")


def same_tensors(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def copied(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "source"))


def weights(folder):
    return {name: t for shard in folder.glob("model*.safetensors") for name, t in load_file(shard).items()}


# ------------------------------------------------------------------ names and shapes of the released models


class FakeProcessor:
    """Stands for a processor where only the token ids count."""

    tokenizer = small_processor().tokenizer


def released_config(num_layers):
    """What Janus-Pro's own config.json says: class names instead of sizes (7B: not even the number of heads)."""
    heads = {} if num_layers == 30 else {"num_attention_heads": 16, "num_key_value_heads": 16}
    return {
        "model_type": "multi_modality",
        "vision_config": {"params": {"model_name": "siglip_large_patch16_384", "select_feature": "same"}},
        "language_config": {"max_position_embeddings": 16384, "model_type": "llama", "vocab_size": 102400, **heads},
    }


@pytest.mark.skipif(not RELEASED.is_file(), reason="the released models' shapes are not beside this clone")
@pytest.mark.parametrize(
    ("name", "num_tensors", "num_layers", "width", "heads"),
    [("Janus-Pro-7B", 936, 30, 4096, 32), ("Janus-Pro-1B", 882, 24, 2048, 16)],
)
def test_every_tensor_of_the_released_models_is_explained(name, num_tensors, num_layers, width, heads):
    shapes = json.loads(RELEASED.read_text(encoding="utf-8"))[name]
    tensors = {key: torch.empty(shape, device="meta", dtype=torch.bfloat16) for key, shape in shapes.items()}
    assert len(tensors) == num_tensors
    config = config_from_original(tensors, released_config(num_layers), FakeProcessor())
    text, vision, vq = config.text_config, config.vision_config, config.vq_config
    assert (text.num_hidden_layers, text.hidden_size, text.num_attention_heads) == (num_layers, width, heads)
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.image_size) == (24, 16, 384)
    assert (vq.base_channels, list(vq.channel_multiplier), vq.num_embeddings) == (128, [1, 1, 2, 2, 4], 16384)
    dropped = {key for key, tensor in tensors.items() if not to_ours(key, tensor)}
    assert all("attn_pool" in key or key.endswith("codebook_used") for key in dropped)
    converted = {new: value for key, t in tensors.items() for new, value in to_ours(key, t).items()}
    check_fit(converted, model_on_meta(config).state_dict(), lambda name: False)
    back = ToOriginal(has_tied_embeddings=False)
    returned = {new: value for key, t in converted.items() for new, value in back.convert(key, t).items()}
    assert {key: list(value.shape) for key, value in returned.items()} == {
        key: shape for key, shape in shapes.items() if key not in dropped
    }


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("is_tied", [False, True])
def test_ours_to_original_and_back_is_bit_identical(tmp_path, is_tied):
    ours = save_ours(tmp_path / "ours", is_tied)
    convert(ours, tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "again")
    same_tensors(weights(ours), weights(tmp_path / "again"))
    left, right = (json.loads((folder / "config.json").read_text()) for folder in (ours, tmp_path / "again"))
    for key in ("vision_config", "vq_config", "boi_token_id", "eoi_token_id", "image_token_id", "pad_token_id"):
        assert left[key] == right[key]
    for key in ("hidden_size", "num_attention_heads", "rope_parameters", "rms_norm_eps", "max_position_embeddings"):
        assert left["text_config"][key] == right["text_config"][key]


def test_original_to_ours_and_back_keeps_all_but_the_unused(original, tmp_path):
    conversion = convert(original, tmp_path / "ours")
    assert len(conversion.dropped) == 2
    convert(tmp_path / "ours", tmp_path / "again")
    kept = {name: tensor for name, tensor in weights(original).items() if name not in conversion.dropped}
    same_tensors(kept, weights(tmp_path / "again"))
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        assert json.loads((original / name).read_text()) == json.loads((tmp_path / "again" / name).read_text()), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_dtype(original, tmp_path, dtype):
    source = copied(original, tmp_path)
    path = source / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    convert(source, tmp_path / "ours")
    assert {tensor.dtype for tensor in weights(tmp_path / "ours").values()} == {dtype}
    model = Janus4oForImageGeneration.from_pretrained(tmp_path / "ours")
    assert model.dtype == dtype
    assert model.model.vqmodel.quant_conv.weight.dtype == torch.float32  # codes must not depend on the dtype


@pytest.mark.parametrize(("num_shards", "suffix"), [(3, "safetensors"), (2, "bin"), (1, "bin")])
def test_shards_of_every_kind_give_the_same_tensors(original, tmp_path, num_shards, suffix):
    convert(original, tmp_path / "expected")
    convert(split(copied(original, tmp_path), num_shards, suffix), tmp_path / "ours")
    same_tensors(weights(tmp_path / "expected"), weights(tmp_path / "ours"))
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) == num_shards
    Janus4oForImageGeneration.from_pretrained(tmp_path / "ours")


def test_old_torch_files_are_read_too(original, tmp_path):
    source = copied(original, tmp_path)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(original, tmp_path / "expected")
    convert(source, tmp_path / "ours")
    same_tensors(weights(tmp_path / "expected"), weights(tmp_path / "ours"))


def test_a_checkpoint_of_transformers_loads_converted_and_as_it_is(tmp_path):
    theirs = save_transformers(tmp_path / "theirs")
    convert(theirs, tmp_path / "ours")
    same_tensors(weights(theirs), weights(tmp_path / "ours"))
    codes = []
    for folder in (theirs, tmp_path / "ours"):
        model = Janus4oForImageGeneration.from_pretrained(folder)
        tokenizer = Janus4oProcessor.from_pretrained(folder).tokenizer
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert model.config.boi_token_id == tokenizer.convert_tokens_to_ids("<begin_of_image>")
        assert model.config.eoi_token_id == tokenizer.convert_tokens_to_ids("<end_of_image>")
        codes.append(model.generate_image("a red circle", do_sample=False, output_type="codes"))
    assert torch.equal(*codes)


# ------------------------------------------------------------------ memory

PEAK = """
import json, sys
from pathlib import Path
import transformers.models.janus.modeling_janus
import sharegpt4o_image.janus4o
from sharegpt4o_image.builders.converter import convert
from sharegpt4o_image.janus4o import Janus4oForImageGeneration

def kilobytes(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])

convert(Path(sys.argv[1]), Path(sys.argv[2]))  # warm: what is imported late is no cost of the weights
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = kilobytes("VmRSS")
convert(Path(sys.argv[3]), Path(sys.argv[4]))
print(json.dumps((kilobytes("VmHWM") - before) * 1024))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_peak_memory_is_that_of_the_largest_shard(original, tmp_path, suffix):
    source = copied(original, tmp_path)
    tensors = load_file(source / "model.safetensors")
    text = json.loads((source / "config.json").read_text())
    width = tensors["language_model.model.embed_tokens.weight"].shape[1]
    big = torch.zeros(600_000, width)  # 154 MB each: the embedding and the text head of a large vocabulary
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        tensors[name] = big.clone()
    text["language_config"]["vocab_size"] = len(big)
    (source / "config.json").write_text(json.dumps(text))
    save_file(tensors, source / "model.safetensors")
    del tensors, big
    split(source, 4, suffix)
    largest = max(path.stat().st_size for path in source.glob(f"*.{suffix}"))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(original), str(tmp_path / "warm"), str(source), str(tmp_path / "ours")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    total = sum(path.stat().st_size for path in source.glob(f"*.{suffix}"))
    assert total > 1.9 * largest
    assert int(done.stdout.splitlines()[-1]) <= 1.3 * largest


# ------------------------------------------------------------------ refusals


def edited_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edited_tensors(edit):
    def apply(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def truncate_torch_file(folder):
    split(folder, 1, "bin")
    shard = next(folder.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:5000])


def lose_shard(folder):
    split(folder, 3)
    (folder / "model-00002-of-00003.safetensors").unlink()


REFUSALS = {
    "another model": (edited_config(model_type="llama"), r"describes a 'llama' model; expected one of multi_modality"),
    "unknown tower": (
        edited_config(tiny_override={}, vision_config={"params": {"model_name": "vit_tiny"}}),
        r"'vit_tiny' is not known; known are siglip_large_patch16_384",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors or"),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "holds no tokenizer that can be read",
    ),
    "no pixels": (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    "missing shard": (lose_shard, r"names 3 shards and 1 of them are missing \(model-00002-of-00003"),
    "truncated shard": (truncate, r"model.safetensors cannot be read"),
    "truncated torch file": (truncate_torch_file, r"\.bin cannot be read"),
    "wrong shape": (
        edited_tensors(lambda t: t.update({"aligner.layers.2.bias": torch.zeros(7)})),
        r"aligner.layers.2.bias has the shape \[7\], expected \[64\]",
    ),
    "missing tensor": (
        edited_tensors(lambda t: t.pop("gen_head.vision_head.bias")),
        "lacks 1 of .* tensors, such as gen_head.vision_head.bias",
    ),
    "missing size": (
        edited_tensors(lambda t: [t.pop(name) for name in list(t) if name.startswith("gen_vision_model.encoder")]),
        "has no gen_vision_model.encoder.conv_in.weight, which tells a size; it is incomplete",
    ),
    "index without shards": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "names no shards",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "holds a list instead of an object",
    ),
    "not tensors": (
        lambda folder: (
            (folder / "model.safetensors").unlink(),
            torch.save({"weights": [1, 2]}, folder / "pytorch_model.bin"),
        ),
        "holds something other than tensors by name",
    ),
    "unexplained tensor": (
        edited_tensors(lambda t: t.update({"adapter.weight": torch.zeros(2)})),
        "holds 1 tensors that the model does not explain, such as adapter.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_checkpoint_is_refused_in_one_sentence(original, tmp_path, case):
    spoil, message = REFUSALS[case]
    source = copied(original, tmp_path)
    spoil(source)
    with pytest.raises(UserError, match=message) as raised:
        convert(source, tmp_path / "ours")
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source"}  # nothing half-written


def test_one_tensor_of_a_wrong_shape_is_named_with_both_shapes(original):
    """Also those from which sizes are read: each is outvoted by the others."""
    given = json.loads((original / "config.json").read_text())
    processor = FakeProcessor()
    whole = {name: tensor.to("meta") for name, tensor in weights(original).items() if to_ours(name, tensor)}
    for name, tensor in whole.items():
        if any(f".{number}." in name for number in (1, 2)) and "aligner" not in name:
            continue  # as the layers of number 0
        shape = list(tensor.shape)
        for wrong in ([shape[0] + 1, *shape[1:]], [*shape[:-1], shape[-1] + 2], [5]):
            spoilt = whole | {name: torch.empty(wrong, device="meta")}
            model = model_on_meta(config_from_original(spoilt, given, processor))
            with pytest.raises(UserError) as raised:
                check_fit(spoilt, expected_original(model), lambda _: False)
            assert f"The tensor {name} has the shape {wrong}, expected {shape};" in str(raised.value)


def test_tensors_that_share_memory_are_stored_twice(original, tmp_path):
    source = copied(original, tmp_path)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"]
    name = "language_model.model.layers.0.mlp.gate_proj.weight"
    tensors[name] = tensors[name].T.contiguous().T
    torch.save(tensors, source / "pytorch_model.bin")
    convert(source, tmp_path / "ours")
    stored = weights(tmp_path / "ours")
    assert torch.equal(stored["lm_head.weight"], tensors["language_model.lm_head.weight"])
    assert torch.equal(stored["model.language_model.layers.0.mlp.gate_proj.weight"], tensors[name])


def test_a_pad_token_of_the_original_processor_counts(original, tmp_path):
    """Released tokenizers name another one, or none; the original code takes the processor's `pad_tag`."""
    source = copied(original, tmp_path)
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<｜end▁of▁sentence｜>"}))
    convert(source, tmp_path / "ours")
    tokenizer = Janus4oProcessor.from_pretrained(tmp_path / "ours").tokenizer
    assert tokenizer.pad_token == "<｜▁pad▁｜>"
    assert Janus4oForImageGeneration.from_pretrained(tmp_path / "ours").config.pad_token_id == tokenizer.pad_token_id


def test_defaults_and_geometry_survive_the_original_format(tmp_path):
    ours = save_ours(tmp_path / "ours")
    for name, change in (
        ("config.json", {"guidance_scale": 1.5, "edit_freedom": 0.5}),
        ("processor_config.json", {"geometry": "center_crop"}),
    ):
        path = ours / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    convert(ours, tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["guidance_scale"], config["edit_freedom"]) == (1.5, 0.5)
    assert Janus4oProcessor.from_pretrained(tmp_path / "again").geometry == "center_crop"


def test_the_verb_prints_what_was_left_out(original, tmp_path, capsys):
    result = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "ours")])
    assert result.exit_code == 0
    assert "tensors in the format janus4o" in result.stdout
    assert "Left out 2 tensors that nothing uses: gen_vision_model.quantize.codebook_used, vision" in result.stdout
    again = CliRunner().invoke(app, ["convert", str(tmp_path / "ours"), str(tmp_path / "again"), "--json"])
    assert json.loads(again.stdout)["target_format"] == "multi_modality"


def test_a_folder_that_holds_something_is_not_overwritten(original, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full is not empty; choose another output folder"):
        convert(original, tmp_path / "full")
    with pytest.raises(UserError, match="lies in the source folder"):
        convert(original, original / "inside")


def test_what_is_neither_folder_nor_repository_is_refused():
    with pytest.raises(UserError, match="There is no folder no/such-model"):
        local_checkpoint("no/such-model")


def test_loading_an_original_checkpoint_names_the_command(original):
    with pytest.raises(ValueError, match=r"original Janus format; convert it first: sharegpt4o-image convert"):
        Janus4oForImageGeneration.from_pretrained(original)


def test_loading_another_model_names_both(original, tmp_path):
    source = copied(original, tmp_path)
    edited_config(model_type="llama")(source)
    with pytest.raises(ValueError, match="describes a 'llama' model; expected 'janus4o'"):
        Janus4oForImageGeneration.from_pretrained(source)
