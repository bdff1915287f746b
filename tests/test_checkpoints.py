# SPDX-License-Identifier: Apache-2.0
"""The two shipped checkpoints: small, loadable as users load them, and able to do what their READMEs say."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from sharegpt4o_image.checkpoints import (
    ASSETS_DIR,
    TINY_JANUS_4O,
    TINY_JANUS_PRO,
    load_checkpoint,
    load_image_tokenizer,
    resolve_checkpoint,
)
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.scene_benchmark import edit_items, prompt_items, source_picture
from sharegpt4o_image.evaluation.scene_runner import draw_and_judge
from sharegpt4o_image.tiny_release import _readme

NAMES = (TINY_JANUS_PRO, TINY_JANUS_4O)
MAX_BYTES = 8_000_000


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small(name):
    assert sum(path.stat().st_size for path in (ASSETS_DIR / name).glob("*.safetensors")) <= MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_its_code_is_the_code_of_the_package(name):
    copies = sorted((ASSETS_DIR / name).glob("*.py"))
    assert len(copies) == 10
    for copy in copies:
        assert copy.read_bytes() == (ASSETS_DIR.parent / "janus4o" / copy.name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_as_the_readme_says(name):
    model = AutoModel.from_pretrained(ASSETS_DIR / name, trust_remote_code=True)
    [picture] = model.generate_image("a red circle on a gray background")
    assert picture.size == (32, 32)


def test_the_fine_tuned_one_kept_the_image_tokenizer():
    before, after = (load_file(ASSETS_DIR / name / "model.safetensors") for name in NAMES)
    frozen = [key for key in before if key.startswith("model.vqmodel.")]
    assert frozen
    assert all(torch.equal(before[key], after[key]) for key in frozen)
    assert before.keys() == after.keys()


FLOORS = {"single object": 0.85, "two objects": 0.50, "recolor": 0.70, "remove": 0.70, "background": 0.70}
EDITS = ("recolor", "remove", "background")


def log_of(name):
    return json.loads((ASSETS_DIR / name / "training_log.json").read_text(encoding="utf-8"))


def test_the_logged_scores_reach_the_floors():
    before, after = (log_of(name)["scores"] for name in NAMES)
    assert all(after[kind]["score"] >= floor for kind, floor in FLOORS.items())
    assert all(before[kind]["score"] >= FLOORS[kind] for kind in FLOORS if kind not in EDITS)
    assert all(before[kind]["score"] <= 0.25 for kind in EDITS)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_guidance_is_the_best_of_those_tried_and_above_1(name):
    log = log_of(name)
    means = {scale: sum(dict(map(tuple, curve))[scale] for curve in log["guidance_curves"].values())
             for scale, _ in log["guidance_curves"]["text-to-image prompts"]}  # fmt: skip
    config = json.loads((ASSETS_DIR / name / "config.json").read_text(encoding="utf-8"))
    assert config["guidance_scale"] == max(means, key=means.get) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_logged_scores_are_drawn_again(name):
    """200 of each kind, as `evaluate` draws them."""
    model, processor = load_checkpoint(name)
    logged = log_of(name)["scores"]
    for items in (prompt_items(200), edit_items(200)):
        for kind, score in draw_and_judge(model, processor, items).table.items():
            assert score["score"] == pytest.approx(logged[kind]["score"], abs=0.02)  # rounding may flip a few


@pytest.mark.parametrize("name", NAMES)
def test_its_readme_tells_the_scores_of_its_log(name):
    log = json.loads((ASSETS_DIR / name / "training_log.json").read_text(encoding="utf-8"))
    readme = (ASSETS_DIR / name / "README.md").read_text(encoding="utf-8")
    assert readme == _readme(name, log)
    assert len(log["scores"]) == 6
    for kind, score in log["scores"].items():
        assert f"| {kind} | {score['score']:.3f} |" in readme
        assert score["images"] >= 200


def test_the_readme_of_the_project_tells_them_too():
    page = (ASSETS_DIR.parents[1] / "README.md").read_text(encoding="utf-8")
    logs = [json.loads((ASSETS_DIR / name / "training_log.json").read_text(encoding="utf-8")) for name in NAMES]
    for kind in logs[0]["scores"]:
        shares = " | ".join(f"{log['scores'][kind]['score']:.3f}" for log in logs)
        assert f"| {kind} | {shares} |" in page


def test_it_draws_what_is_asked():
    model, processor = load_checkpoint(TINY_JANUS_4O)
    items = [item for item in prompt_items(16, seed=7) if item.kind == "single object"]
    assert sum(verdict.correct for verdict in draw_and_judge(model, processor, items).verdicts) >= 11


def test_only_the_fine_tuned_one_edits():
    items = edit_items(8, seed=7)
    right = {}
    for name in NAMES:
        model, processor = load_checkpoint(name)
        right[name] = sum(verdict.correct for verdict in draw_and_judge(model, processor, items).verdicts)
    assert right[TINY_JANUS_4O] >= 12
    assert right[TINY_JANUS_PRO] <= 6


def test_the_image_tokenizer_is_loaded_alone():
    whole, _ = load_checkpoint(TINY_JANUS_4O)
    tokenizer, processor = load_image_tokenizer(TINY_JANUS_4O)
    pixels = processor.source_pixels([source_picture(item) for item in edit_items(2)])
    assert tokenizer.encode_image(pixels).equal(whole.encode_image(pixels))
    held = {name for name, weight in tokenizer.named_parameters() if weight.device.type != "meta"}
    assert held == {name for name, _ in whole.named_parameters() if name.startswith("model.vqmodel.")}


def test_a_checkpoint_without_its_image_tokenizer_is_refused(tmp_path):
    folder = shutil.copytree(ASSETS_DIR / TINY_JANUS_4O, tmp_path / "bare")
    weights = load_file(folder / "model.safetensors")
    bare = {name: weight for name, weight in weights.items() if not name.startswith("model.vqmodel.")}
    save_file(bare, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"bare cannot be loaded: it has no .* of the image tokenizer"):
        load_image_tokenizer(str(folder))


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=f"no checkpoint 'tiny'.*{TINY_JANUS_PRO}, {TINY_JANUS_4O}"):
        resolve_checkpoint("tiny")
