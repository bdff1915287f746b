# SPDX-License-Identifier: Apache-2.0
"""A packed and encoded data set of 24 samples of each task, made once for all tests that only read it."""

import functools
import tempfile
from pathlib import Path

from sharegpt4o_image.builders.packer import pack
from sharegpt4o_image.builders.run_source import RunSource
from sharegpt4o_image.checkpoints import TINY_JANUS_PRO
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.run import synthesize
from sharegpt4o_image.training.encode_run import encode_dataset

_FOLDER = tempfile.TemporaryDirectory(prefix="sharegpt4o-image-encoded-")
NUM_ROWS = 48


@functools.cache
def run_dir():
    synthesize(Path(_FOLDER.name, "run"), SynthesisConfig(), limit=NUM_ROWS // 2)
    return Path(_FOLDER.name, "run")


@functools.cache
def encoded_set():
    """The folder; its codes are those of `tiny-janus-pro` and the default geometry."""
    folder = Path(_FOLDER.name, "sharegpt4o-image")
    pack(RunSource(run_dir()), folder)
    encode_dataset(folder, TINY_JANUS_PRO)
    return folder
