# SPDX-License-Identifier: Apache-2.0
"""A saved folder or Hub repository is all that transformers needs: it loads where our package cannot be imported."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub, environment
from small_checkpoints import save_original, save_ours

import sharegpt4o_image.janus4o as janus4o
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.janus4o.modeling_janus4o import Janus4oOutput

SCRIPT = """
import json, sys
sys.modules["sharegpt4o_image"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
name = sys.argv[1]
model = AutoModel.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
names = [type(AutoConfig.from_pretrained(name, trust_remote_code=True)).__name__]
names.append(type(AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)).__name__)
source = Image.new("RGB", (40, 20), "red")
batch = processor.prepare_image_generation(["make it blue"], [[source]])
with torch.no_grad():
    logits = model(**batch, target_codes=torch.arange(64)[None]).logits
codes = model.generate_image("make it blue", image=source, do_sample=False, output_type="codes")
print(json.dumps({"names": names, "logits": logits.flatten().tolist(), "codes": codes.tolist()}))
"""

PUSH = """
import sys
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
folder, name = sys.argv[1:]
Janus4oForImageGeneration.from_pretrained(folder).push_to_hub(name)
Janus4oProcessor.from_pretrained(folder).push_to_hub(name)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_ours(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def expected(folder):
    from PIL import Image

    model, processor = Janus4oForImageGeneration.from_pretrained(folder), Janus4oProcessor.from_pretrained(folder)
    source = Image.new("RGB", (40, 20), "red")
    batch = processor.prepare_image_generation(["make it blue"], [[source]])
    with torch.no_grad():
        output = model(**batch, target_codes=torch.arange(64)[None])
    assert isinstance(output, Janus4oOutput)
    codes = model.generate_image("make it blue", image=source, do_sample=False, output_type="codes")
    return {
        "names": ["Janus4oConfig", "Janus4oForImageGeneration"],
        "logits": output.logits.flatten().tolist(),
        "codes": codes.tolist(),
    }


def run(script, *arguments, cwd, environment=None, is_isolated=True):
    command = [sys.executable, *(["-I"] if is_isolated else []), "-c", script, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | (environment or {}),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def same_answer(stdout, expected):
    answer = json.loads(stdout)  # nothing else is printed, and nothing is asked
    assert answer["names"] == expected["names"]
    assert answer["codes"] == expected["codes"]
    torch.testing.assert_close(torch.tensor(answer["logits"]), torch.tensor(expected["logits"]), atol=1e-5, rtol=0)


def test_the_code_is_copied_verbatim(folder):
    sources = sorted(Path(janus4o.__file__).parent.glob("*_janus4o.py"))
    assert len(sources) == 10
    for source in sources:
        assert filecmp.cmp(source, folder / source.name, shallow=False), source.name


def test_a_clean_process_computes_the_same_from_a_folder(folder, expected, tmp_path):
    same_answer(run(SCRIPT, folder, cwd=tmp_path), expected)


def test_a_converted_folder_needs_nothing_else_either(folder, expected, tmp_path):
    from sharegpt4o_image.builders.converter import convert

    original = save_original(tmp_path / "original")
    convert(original, tmp_path / "converted")
    same_answer(run(SCRIPT, tmp_path / "converted", cwd=tmp_path), expected)


def test_a_clean_process_computes_the_same_from_a_hub(folder, expected, tmp_path):
    with LoopbackHub() as hub:
        run(PUSH, folder, "tester/janus", cwd=tmp_path, is_isolated=False,
            environment=environment(hub.endpoint, str(tmp_path / "pushing")))  # fmt: skip
        sha, files = hub.repositories["models/tester/janus"].commits[-1]
        assert {"model.safetensors", "config.json", "processor_config.json", "modeling_janus4o.py"} <= files.keys()
        there = environment(hub.endpoint, str(tmp_path / "loading"))
        same_answer(run(SCRIPT, "tester/janus", cwd=tmp_path, environment=there), expected)
    assert (tmp_path / "loading" / "hub" / "models--tester--janus" / "snapshots" / sha).is_dir()


PUSH_AND_PIN = """
import sys
from transformers import AutoModel
from huggingface_hub import HfApi
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
folder, name = sys.argv[1:]
Janus4oForImageGeneration.from_pretrained(folder).push_to_hub(name)
processor = Janus4oProcessor.from_pretrained(folder)
for processor.geometry in ("pad", "center_crop"):
    processor.push_to_hub(name)
first = HfApi().list_repo_commits(name)[1].commit_id
for load in (Janus4oForImageGeneration.from_pretrained, AutoModel.from_pretrained):
    for options in ({}, {"revision": first}):
        print(load(name, trust_remote_code=True, **options).processor.geometry)
"""


def test_the_processor_is_of_the_revision_of_the_model(folder, tmp_path):
    with LoopbackHub() as hub:
        there = environment(hub.endpoint, str(tmp_path / "home"))
        printed = run(PUSH_AND_PIN, folder, "tester/janus", cwd=tmp_path, is_isolated=False, environment=there)
    assert printed.split() == ["center_crop", "pad"] * 2


UPLOAD = """
import sys
from huggingface_hub import create_repo, upload_folder
create_repo(sys.argv[2])
upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])
"""

LOAD_ORIGINAL = """
import sys
from transformers import AutoModel
from sharegpt4o_image.builders.converter import convert, local_checkpoint
from sharegpt4o_image.janus4o import Janus4oForImageGeneration
for load in (Janus4oForImageGeneration.from_pretrained, AutoModel.from_pretrained):
    try:
        load(sys.argv[1])
    except ValueError as error:
        print(error)
from pathlib import Path
convert(local_checkpoint(sys.argv[1]), Path(sys.argv[2]))
"""


def test_an_original_repository_is_converted_from_the_hub(expected, tmp_path):
    """Loading it names the command, and the command downloads it."""
    original = save_original(tmp_path / "original")
    with LoopbackHub() as hub:
        there = environment(hub.endpoint, str(tmp_path / "home"))
        run(UPLOAD, original, "tester/original", cwd=tmp_path, is_isolated=False, environment=there)
        printed = run(LOAD_ORIGINAL, "tester/original", tmp_path / "ours", cwd=tmp_path, is_isolated=False,
                      environment=there)  # fmt: skip
    command = "sharegpt4o-image convert tester/original janus4o-folder"
    assert [command in line for line in printed.splitlines()] == [True, True]
    same_answer(run(SCRIPT, tmp_path / "ours", cwd=tmp_path), expected)


def test_saving_again_keeps_the_folder_loadable(folder, tmp_path):
    Janus4oForImageGeneration.from_pretrained(folder).save_pretrained(tmp_path)
    Janus4oProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
