# SPDX-License-Identifier: Apache-2.0
"""The model verbs as typed: results on stdout; on bad input one sentence with the remedy, exit code 2, no files."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.checkpoints import ASSETS_DIR
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.run import synthesize


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A data set of 12 samples of each task."""
    directory = tmp_path_factory.mktemp("packed")
    synthesize(directory / "run", SynthesisConfig(), limit=12)
    pack(RunSource(directory / "run"), directory / "data")
    return directory / "data"


def test_generate_writes_pictures_and_prints_their_paths(run):
    code, out, _ = run("generate", "a red circle on a gray background", "-n", 3)
    assert code == 0
    assert out.split() == ["out/0000.png", "out/0001.png", "out/0002.png"]
    assert {Image.open(path).size for path in out.split()} == {(32, 32)}


def test_a_seed_draws_the_same_picture_again(run):
    for folder in ("first", "second"):
        assert run("generate", "a blue star on a white background", "-o", folder, "--seed", 5)[0] == 0
    run("generate", "a blue star on a white background", "-o", "other", "--seed", 6)
    first, second, other = (Path(name, "0000.png").read_bytes() for name in ("first", "second", "other"))
    assert first == second != other


def test_generate_edits_a_picture_of_any_size(run):
    Image.new("RGB", (300, 200), "white").save("source.png")
    code, out, _ = run("generate", "make the background navy", "-i", "source.png", "--json")
    assert code == 0
    assert json.loads(out) == ["out/0000.png"]


def test_control_tokens_in_a_prompt_are_text(run):
    assert run("generate", "<|User|> <begin_of_image> <image_placeholder> a red circle")[0] == 0


def test_encode_train_and_generate_follow_each_other(run, packed):
    code, out, _ = run("encode", packed, "--json")
    encoding = json.loads(out)
    assert (code, encoding["num_rows"], encoding["num_files_encoded"], encoding["skipped"]) == (0, 24, 2, [])
    assert Path(encoding["codes_dir"]).parent == packed / "codes"
    assert "already encoded" in run("encode", packed)[1]
    code, out, _ = run("train", packed, "-o", "tuned", "--max-steps", 2, "--batch-size", 4, "--json")
    log = json.loads(out)
    assert (code, log["steps"], log["rows"]) == (0, 2, 22)
    assert run("generate", "a red circle", "-m", "tuned")[0] == 0
    again = run("train", packed, "-o", "tuned", "--max-steps", 2, "--batch-size", 4)
    assert again[0] == 0
    assert "tuned is finished" in again[1]
    code, _, err = run("train", packed, "-o", "tuned")
    assert code == 2
    assert "(per_device_train_batch_size was 4, now 16; max_steps was 2, now 200)" in err


def test_train_hands_any_other_field_to_the_program(run, packed):
    run("encode", packed)
    Path("mine.yaml").write_text(
        f"dataset: {packed}\nmax_steps: 1\nper_device_train_batch_size: 2\nsave_strategy: 'no'\n"
    )
    assert (
        run("train", "-o", "tuned", "--config", "mine.yaml", "--preset", "paper", "--geometry", "center_crop")[0] == 0
    )
    record = json.loads(Path("tuned/run.json").read_text())
    assert record["arguments"]["dataset"] == str(packed)
    assert (record["config"]["max_steps"], record["config"]["per_device_train_batch_size"]) == (1, 2)
    assert (record["config"]["null_dropout"], record["config"]["geometry"]) == (0.0, "center_crop")


def test_encode_names_rows_with_broken_pictures_and_goes_on(run, packed, tmp_path):
    [path] = shutil.copytree(packed, tmp_path / "broken").glob("text_to_image/*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[3]["output_image"]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    code, out, err = run("encode", "broken")
    assert code == 0
    assert "23 rows have codes, 1 without, which training skips" in out
    assert f"No codes for {rows[3]['id']} of text_to_image/{path.name}: the output image is no picture" in err


def test_evaluate_prints_and_keeps_scores(run):
    code, out, _ = run("evaluate", "scene-edits", "--limit", 2, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(Path("scores/scene-edits/scores/scene-edits.json").read_text())["details"]
    assert len(Path("scores/scene-edits/results.jsonl").read_text().splitlines()) == 6


def test_a_missing_extra_names_the_command(run, packed, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("sharegpt4o_image.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    code, _, err = run("train", packed, "-o", "tuned")
    assert code == 2
    assert 'trl is not installed; type: pip install "sharegpt4o-image[train]"' in err


BAD_INPUT = {
    "empty prompt": (["generate", "  "], "prompt is empty"),
    "no such picture": (["generate", "x", "-i", "missing.png"], "There is no picture missing.png"),
    "unreadable picture": (["generate", "x", "-i", "broken.png"], "broken.png cannot be read as a picture"),
    "no such checkpoint": (["generate", "x", "-m", "nothing"], "no checkpoint 'nothing'"),
    "an original checkpoint": (["generate", "x", "-m", "original"], "sharegpt4o-image convert original"),
    "a checkpoint of another model": (["evaluate", "scenes", "-m", "llama"], "describes a 'llama' model"),
    "a damaged checkpoint": (["generate", "x", "-m", "damaged"], "The checkpoint damaged cannot be loaded"),
    "top_p": (["generate", "x", "--top-p", "2"], "top_p is 2.0; it must be above 0 and at most 1"),
    "output size": (["generate", "x", "--output-size", "big"], "output_size is 'big'"),
    "output is a file": (["generate", "x", "-o", "broken.png"], "broken.png is a file; choose a folder"),
    "scores go into a file": (["evaluate", "scenes", "-o", "broken.png"], "broken.png is a file; choose a folder"),
    "training goes into a file": (["train", "bare", "-o", "broken.png"], "broken.png is not empty"),
    "negative guidance": (["evaluate", "scenes", "--guidance-scale", "-1"], "Invalid value for '--guidance-scale'"),
    "negative learning rate": (["train", "bare", "-o", "t", "--learning-rate", "-1"], "Invalid value for '--learning"),
    "a data set without data": (["encode", "empty"], "empty is no data set that `sharegpt4o-image pack` wrote"),
    "no such geometry": (["encode", "bare", "--geometry", "stretch"], "no geometry 'stretch'; choose pad or center_"),
    "no process": (["encode", "bare", "--num-processes", "0"], "Invalid value for '--num-processes'"),
    "not a folder": (["encode", "owner/name"], "owner/name is no folder"),
    "a port that cannot be": (
        ["synthesize", "-o", "run", "--base-url", "http://localhost:99999/v1"],
        "is not an http(s) address",
    ),
    "a password in an address": (
        ["synthesize", "-o", "run", "--base-url", "ftp://me:secret@host/"],
        "must not carry a user name or password",
    ),
    "no such benchmark": (["evaluate", "genevil"], "No such command 'genevil'"),
    "no such run": (["status", "nowhere"], "nowhere"),
    "nothing to pack": (["pack", "nowhere"], "nowhere"),
    "no such data set": (["encode", "nowhere"], "nowhere"),
    "no such field": (["train", "bare", "-o", "t", "--null-dropuot", "0"], "did you mean null_dropout?"),
    "two output folders": (["train", "bare", "-o", "t", "--output_dir", "u"], "--output_dir is given besides -o"),
    "a value that is no number": (["train", "bare", "-o", "t", "--max_steps", "ten"], "invalid int value: 'ten'"),
    "no data set to train on": (["train", "-o", "tuned"], "no data set is named"),
    "training another model": (["train", "bare", "-o", "tuned", "-m", "llama"], "describes a 'llama' model"),
    "a data set without README": (["train", "bare", "-o", "tuned"], "README.md"),
    "no such checkpoint to convert": (["convert", "nowhere", "converted"], "nowhere"),
    "unknown option": (["generate", "x", "--speed", "9"], "No such option: --speed"),
    "no such verb": (["draw"], "No such command 'draw'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, case):
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    Path("bare").mkdir()
    Path("empty").mkdir()
    Path("empty/README.md").write_text("nothing")
    for name, model_type in (("original", "multi_modality"), ("llama", "llama")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps({"model_type": model_type}))
    Path("damaged").mkdir()
    for path in (ASSETS_DIR / "tiny-janus-4o").glob("*.json"):
        Path("damaged", path.name).write_bytes(path.read_bytes())
    Path("damaged/model.safetensors").write_bytes(b"damaged")
    before = sorted(Path().rglob("*"))
    arguments, message = BAD_INPUT[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert "secret" not in err
    assert sorted(Path().rglob("*")) == before
