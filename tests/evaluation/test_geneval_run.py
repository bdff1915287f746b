# SPDX-License-Identifier: Apache-2.0
"""GenEval from prompts to scores: drawn by the shipped checkpoint, judged by small random models, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
import torch
from PIL import Image
from test_clip_colors import EDGE, END, START, tiny_tokenizer
from transformers import CLIPConfig, CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.benchmark_run import Share
from sharegpt4o_image.evaluation.geneval_layout import sample_path
from sharegpt4o_image.evaluation.geneval_prompts import CLASS_NAMES, COLORS, generate_metadata, metadata_text
from sharegpt4o_image.evaluation.geneval_run import Benchmark, run_geneval
from sharegpt4o_image.evaluation.geneval_scores import ResultRow, score_results
from sharegpt4o_image.evaluation.mask2former_detector import Mask2FormerDetector
from sharegpt4o_image.evaluation.score_record import read_scores

NUMBERS = (0, 80, 179, 259, 353, 453)  # of the first prompt of each task
NUM_PICTURES = 12  # two of each


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Folders of a detector and a classifier that were never trained, small but of the true architectures."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = SwinConfig(
        embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=7, out_features=stages
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, num_labels=80, num_queries=20, hidden_dim=32, mask_feature_size=32, feature_size=32,
        num_attention_heads=2, encoder_layers=1, decoder_layers=2, dim_feedforward=32, encoder_feedforward_dim=32,
    )  # fmt: skip
    detector = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # all queries see benches and hydrants: verdicts differ, colours count
        for name in ("bench", "fire hydrant"):
            detector.class_predictor.bias[CLASS_NAMES.index(name)] = 50
        detector.model.transformer_module.decoder.mask_predictor.get_submodule("mask_embedder.2.0").weight.mul_(1000)
    detector.save_pretrained(folder / "detector")
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = layers | {"vocab_size": 30, "max_position_embeddings": 16, "bos_token_id": START, "eos_token_id": END}
    clip = CLIPConfig(
        text_config=text, vision_config=layers | {"image_size": EDGE, "patch_size": 8}, projection_dim=16
    )
    CLIPModel(clip).save_pretrained(folder / "clip")
    tiny_tokenizer().save_pretrained(folder / "clip")
    return ["--detector", folder / "detector", "--colors", folder / "clip"]


@pytest.fixture
def arguments(judge):
    small = ["--limit", 1, "--images-per-prompt", 2, "--guidance-scale", 1]
    return ["evaluate", "geneval", *judge, *small, "-o", "out"]


@pytest.fixture
def sees_little(monkeypatch):
    """Pictures are a hundredth of GenEval's as the detector of this process sees them."""
    monkeypatch.setattr(Mask2FormerDetector.__init__, "__defaults__", (133, 80, None))


def times(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


@pytest.mark.usefixtures("sees_little")
def test_a_checkpoint_is_drawn_judged_and_scored_and_nothing_is_done_twice(run, tmp_path, arguments):
    code, out, err = run(*arguments, "--model", "tiny-janus-4o", "--json")
    assert code == 0, err
    result = json.loads(out)
    folder = tmp_path / "out/geneval"
    record = read_scores(folder / "scores/geneval.json")
    assert (record.num_scored, record.num_expected, record.missing) == (NUM_PICTURES, NUM_PICTURES, ())
    assert result["overall"] == record.overall.value == result["scores"][0]["value"]
    assert [line.name for line in record.scores[1:]] == list(result["tasks"])
    assert len(result["images"]) == NUM_PICTURES
    assert record.name == ("geneval[detector=detector, colors=clip, prompts=6 of 553, images_per_prompt=2]")
    assert record.generator["guidance_scale"] == 1
    assert record.generator["seed"] == 42
    assert record.judge["detector"]["model"] == "detector"
    assert record.command == (
        "sharegpt4o-image evaluate geneval --model tiny-janus-4o --seed 42 --guidance-scale 1.0 --guidance-until 1.0 "
        "--detector detector --colors clip --limit 1 --images-per-prompt 2"
    )
    assert (folder / "failures.png").is_file()
    tasks = {tag: task["score"] for tag, task in result["tasks"].items()}
    assert (tasks["single_object"], tasks["two_object"], tasks["counting"]) == (1, 0, 0)
    seen = [image["reason"] for image in result["images"][6:8]]  # of a blue fire hydrant
    assert all(reason == "" or any(f" {color}" in reason for color in COLORS) for reason in seen), seen
    # The official files: metadata beside the pictures, rows of the official columns.
    line = (folder / "images/00259/metadata.jsonl").read_text()
    assert line in metadata_text(generate_metadata())
    summary, rows = score_results(folder / "results.jsonl")
    assert summary.overall == record.overall.value
    assert [row.filename for row in rows] == [sample_path(i, j) for i in NUMBERS for j in range(2)]

    before, verdicts = times(folder / "images"), (folder / "verdicts/verdicts-0.jsonl").read_bytes()
    code, out, _ = run(*arguments, "--model", "tiny-janus-4o", "--json")
    assert code == 0
    assert json.loads(out)["images"] == result["images"]
    assert times(folder / "images") == before
    assert (folder / "verdicts/verdicts-0.jsonl").read_bytes() == verdicts

    num_verdicts = verdicts.count(b"\n")  # equal pictures of one prompt, such as empty ones, have one
    Image.new("RGB", (64, 64), "red").save(folder / "images/00080/samples/0001.png")
    assert run(*arguments, "--model", "tiny-janus-4o")[0] == 0
    assert (folder / "verdicts/verdicts-0.jsonl").read_bytes().count(b"\n") == num_verdicts + 1

    code, out, err = run(*arguments, "--model", "tiny-janus-pro")
    assert (code, out) == (2, "")
    assert "were drawn with another model, revision" in err


@pytest.mark.usefixtures("sees_little")
def test_a_folder_of_pictures_is_scored_and_its_faults_are_named(run, tmp_path, arguments):
    images = tmp_path / "images"
    for index, number in enumerate(NUMBERS):
        (images / f"{number:05d}/samples").mkdir(parents=True)
        for sample in range(2):
            Image.new("RGB", (48, 32), (40 * index, 90, 90 * sample)).save(images / sample_path(number, sample))
    (images / "00179/samples/0000.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (1, 4000)).save(images / "00259/samples/0000.png")
    (images / "00353/samples/0001.png").unlink()
    (images / "00353/samples/0000.png").unlink()
    (images / "00353/samples/0000.png").mkdir()
    (images / "notes").mkdir()
    (images / os.fsdecode(b"\xff")).mkdir()
    at = arguments.index("--guidance-scale")
    arguments = arguments[:at] + arguments[at + 2 :]
    code, out, err = run(*arguments, "--images", images)
    assert code == 0, err
    assert "8 of 12 scored, 4 missing" in out
    assert "00353/samples/0000.png: the picture cannot be read (Is a directory)" in out
    assert "00353/samples/0001.png: 00353 has 1 of 2 pictures" in out
    assert "00179/samples/0000.png: the picture cannot be read" in out
    assert "00259/samples/0000.png: a picture of 1x4000 is too thin for the detector" in out
    assert r"notes, \udcff: no folder of a prompt; not looked at" in out
    assert not (tmp_path / "out/geneval/images").exists()
    record = read_scores(tmp_path / "out/geneval/scores/geneval.json")
    assert (record.model, record.num_scored, len(record.missing)) == (None, 8, 4)


def test_what_draws_must_be_said_once(run, arguments):
    for extra, message in [
        ([], "give --model NAME or --images FOLDER"),
        (["--model", "m", "--images", "i"], "give either --images, or what draws them"),
        (["--model", "nowhere"], "There is no checkpoint 'nowhere'"),
        (["--images", "nowhere"], "nowhere is no folder"),
        (["--from-results", "r"], "leave these out"),
        (["--images", ".", "--seed", 43], "are for drawing; leave them out with --images"),
        (["--base-url", "http://127.0.0.1:1"], "--base-url needs the name of the model there"),
    ]:
        code, out, err = run(*arguments, *extra)
        assert (code, out) == (2, ""), extra
        assert message in err
        assert err.count("\n") == 1


def test_a_device_that_is_not_there_is_named(run, tmp_path, judge):
    code, _, err = run("evaluate", "geneval", *judge, "--images", tmp_path, "--device", "gpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "this torch has no device 'gpu'" in err


class RightIfThere:
    """A judge without models; a picture that it looks at takes another one away."""

    identity: ClassVar = {"judge": "a stand-in"}

    def __init__(self, takes_away):
        self.takes_away = takes_away

    def judge(self, picture, prompt, filename):
        self.takes_away.unlink(missing_ok=True)
        return ResultRow(filename, prompt.tag, prompt.prompt, True, "", json.dumps(prompt.to_json()), "{}")


def small_benchmark(folder, num_prompts=2):
    for number in range(num_prompts):
        (folder / f"{number:05d}/samples").mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / sample_path(number, 0))
    last = folder / sample_path(num_prompts - 1, 0)
    return Benchmark("geneval", {}, generate_metadata()[:num_prompts], RightIfThere(last), 1)


def test_a_picture_that_goes_away_while_others_are_judged_is_missing(tmp_path):
    result = run_geneval(small_benchmark(tmp_path / "images"), tmp_path, None, tmp_path / "images")
    assert (result.record.num_scored, result.record.num_expected) == (1, 2)
    assert [(one.item, one.reason) for one in result.record.missing] == [
        ("00001/samples/0000.png", "the picture cannot be read (No such file or directory)")
    ]


def test_the_main_process_takes_the_verdicts_of_the_others(tmp_path):
    benchmark = small_benchmark(tmp_path / "images", 4)
    benchmark.judge.takes_away = tmp_path / "nothing"
    assert run_geneval(benchmark, tmp_path, None, tmp_path / "images", share=Alone(1, 2)) is None
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / sample_path(3, 0))
    result = run_geneval(benchmark, tmp_path, None, tmp_path / "images", share=Alone(0, 2))
    assert [row.filename for row in result.rows] == [sample_path(number, 0) for number in range(3)]
    assert "it changed while it was judged" in result.record.missing[0].reason


class Alone(Share):
    """Of a share whose other processes are done."""

    def wait(self):
        pass


class Dies:
    """A generator that ends before its first picture is whole."""

    identity: ClassVar = {"model": "dies"}

    def draw(self, requests, keep):
        keep(requests[0], Image.new("RGB", (8, 8)))
        raise RuntimeError("killed")


def test_pictures_of_other_prompts_are_never_taken_for_these(tmp_path):
    prompts = generate_metadata()
    first, second = (Benchmark("geneval", {}, part, RightIfThere(tmp_path), 1) for part in (prompts[:2], prompts[2:4]))
    with pytest.raises(RuntimeError, match="killed"):
        run_geneval(first, tmp_path, Dies())
    with pytest.raises(UserError, match=r"is of another prompt .* choose another folder with --output"):
        run_geneval(second, tmp_path, Dies())


def start(arguments, folder, *launcher):
    arguments = [*map(str, arguments), "--model", "tiny-janus-4o"]
    command = [sys.executable, "-m", *launcher, "sharegpt4o_image.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, arguments):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    arguments = [*arguments, "--limit", 2, "--images-per-prompt", 2]  # 24 pictures, drawn 16 at a time
    process = start(arguments, killed)
    while len(list((killed / "out").rglob("samples/*.png"))) < 1:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    drawn = times(killed / "out")
    assert 0 < len(drawn) < 24
    for folder in (killed, whole):
        process = start(arguments, folder)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert {path: time for path, time in times(killed / "out").items() if path in drawn} == drawn
    assert (killed / "out/geneval/results.jsonl").read_bytes() == (whole / "out/geneval/results.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, arguments):
    one, two = tmp_path / "one", tmp_path / "two"
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    for folder, launcher in ((one, ()), (two, launch)):
        folder.mkdir()
        process = start([*arguments, "--json"], folder, *launcher)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert len(json.loads(output)["images"]) == NUM_PICTURES  # printed once
    assert (one / "out/geneval/results.jsonl").read_bytes() == (two / "out/geneval/results.jsonl").read_bytes()
    halves = [(two / f"out/geneval/verdicts/verdicts-{rank}.jsonl").read_text().count("\n") for rank in range(2)]
    assert min(halves) >= 4  # of six pictures, where equal ones have one verdict
