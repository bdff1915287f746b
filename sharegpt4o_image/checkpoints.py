# SPDX-License-Identifier: Apache-2.0
"""Checkpoints by name: the shipped tiny ones, a folder, or a Hub id -> model and processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharegpt4o_image.errors import UserError

if TYPE_CHECKING:
    from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

ASSETS_DIR = Path(__file__).parent / "assets"
TINY_JANUS_PRO = "tiny-janus-pro"  # text to image only
TINY_JANUS_4O = "tiny-janus-4o"  # the same, fine-tuned to edit


def resolve_checkpoint(name: str) -> str:
    """The folder of a shipped checkpoint, an existing folder, or a Hub id (`owner/name`) as it is."""
    if (ASSETS_DIR / name / "config.json").is_file():
        return str(ASSETS_DIR / name)
    if name in (TINY_JANUS_PRO, TINY_JANUS_4O):
        raise UserError(f"the checkpoint {name} is not in {ASSETS_DIR}; `make tiny-checkpoints` trains it")
    path = Path(name)
    if (path / "adapter_config.json").is_file():
        raise UserError(f"{name} is an adapter; merge it first: sharegpt4o-image convert {name} MERGED")
    if (path / "config.json").is_file():
        return name
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/")) and not path.exists()
    if is_hub_id:
        return name
    raise UserError(
        f"There is no checkpoint {name!r}; give a folder with a config.json, a Hub id such as owner/name, "
        f"or one of {TINY_JANUS_PRO}, {TINY_JANUS_4O}."
    )


def load_checkpoint(name: str, dtype: str = "auto") -> "tuple[Janus4oForImageGeneration, Janus4oProcessor]":
    """Model (evaluation mode, on the GPU if there is one) and processor of a checkpoint.

    `dtype` is the checkpoint's own by default; train in `"float32"`.
    """
    import torch

    from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

    folder = resolve_checkpoint(name)
    with _told_as_user_error(name):
        model = Janus4oForImageGeneration.from_pretrained(folder, dtype=dtype).eval()
        processor = Janus4oProcessor.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), processor


def load_image_tokenizer(name: str) -> "tuple[Janus4oForImageGeneration, Janus4oProcessor]":
    """As [`load_checkpoint`] for `encode_image` and `decode_image` alone: no other part of the model holds anything.

    Of a checkpoint of 15 GB it reads 0.3.
    """
    import torch
    from transformers.models.janus.modeling_janus import JanusVQVAE

    from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration, Janus4oProcessor

    class ImageTokenizer(JanusVQVAE):
        # The rest of the checkpoint, without a warning.
        _keys_to_ignore_on_load_unexpected = {"."}  # noqa: RUF012 (transformers declares it so)

    folder = resolve_checkpoint(name)
    with _told_as_user_error(name):
        config: Any = Janus4oConfig.from_pretrained(folder)
        loaded: Any = ImageTokenizer.from_pretrained(
            folder, config=config.vq_config, dtype=torch.float32, key_mapping={r"^model\.vqmodel\.": ""},
            output_loading_info=True,
        )  # fmt: skip
        vqmodel, report = loaded
        if report["missing_keys"]:
            raise ValueError(f"it has no {min(report['missing_keys'])} of the image tokenizer")
        with torch.device("meta"):
            model = Janus4oForImageGeneration(config).eval()
        processor = Janus4oProcessor.from_pretrained(folder)
    model.model.vqmodel = vqmodel.to("cuda" if torch.cuda.is_available() else "cpu")
    return model, processor


@contextmanager
def _told_as_user_error(name: str) -> Iterator[None]:
    """Name the checkpoint that cannot be loaded, and why."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The checkpoint {name} cannot be loaded: {reason}") from error
