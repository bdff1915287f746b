# SPDX-License-Identifier: Apache-2.0
"""A saved folder is all that transformers needs: it loads where our package cannot be imported."""

import filecmp
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sharegpt4o_image.janus4o as janus4o
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.training.tiny_data import training_texts
from sharegpt4o_image.training.tiny_model import tiny_config, tiny_processor, untrained_model

SCRIPT = """
import json, sys
sys.modules["sharegpt4o_image"] = None  # any import of it fails
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
names = [type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__]
names.append(type(AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)).__name__)
codes = model.generate_image("a red circle", do_sample=False, output_type="codes")
print(json.dumps({"names": names, "codes": codes.tolist()}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("hub") / "tiny"
    torch.manual_seed(0)
    processor = tiny_processor(training_texts(0, 50))
    untrained_model(tiny_config(processor)).save_pretrained(target)
    processor.save_pretrained(target)
    return target


def test_the_code_is_copied_verbatim(folder):
    sources = sorted(Path(janus4o.__file__).parent.glob("*_janus4o.py"))
    assert len(sources) == 4
    for source in sources:
        assert filecmp.cmp(source, folder / source.name, shallow=False), source.name


def test_a_clean_process_draws_the_same_codes(folder, tmp_path):
    model = Janus4oForImageGeneration.from_pretrained(folder)
    codes = model.generate_image("a red circle", do_sample=False, output_type="codes")
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(folder)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)  # nothing else is printed, and nothing is asked
    assert answer == {"names": ["Janus4oConfig", "Janus4oForImageGeneration"], "codes": codes.tolist()}


def test_saving_again_keeps_the_folder_loadable(folder, tmp_path):
    Janus4oForImageGeneration.from_pretrained(folder).save_pretrained(tmp_path)
    Janus4oProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
