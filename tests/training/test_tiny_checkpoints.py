# SPDX-License-Identifier: Apache-2.0
"""The command that rebuilds the tiny checkpoints, from nothing to the last stage, with a few steps in each."""

import json

import pytest

from sharegpt4o_image.checkpoints import load_checkpoint
from sharegpt4o_image.training.tiny_checkpoints import TinyRecipe, build

STAGES = ("image_tokenizer", "decoder", "tiny-janus-pro", "tiny-janus-4o")


@pytest.mark.slow
def test_every_stage_runs_and_a_second_run_does_nothing(tmp_path):
    recipe = TinyRecipe(
        tokenizer_texts=200, image_tokenizer_steps=4, decoder_steps=2, text_to_image_rows=64, text_to_image_steps=2,
        edit_rows=32, edit_steps=2,
    )  # fmt: skip
    build(tmp_path, recipe)
    logs = {stage: (tmp_path / stage / "log.json").read_text(encoding="utf-8") for stage in STAGES}
    settings = {stage: set(json.loads(log)["recipe"]) for stage, log in logs.items()}
    assert "edit_steps" in settings["tiny-janus-4o"]
    assert "edit_steps" not in settings["tiny-janus-pro"]
    model, processor = load_checkpoint(str(tmp_path / "tiny-janus-4o"))
    assert model.generate_image("a red circle", processor=processor)[0].size == (32, 32)
    build(tmp_path, recipe)
    assert all((tmp_path / stage / "log.json").read_text(encoding="utf-8") == log for stage, log in logs.items())
