# SPDX-License-Identifier: Apache-2.0
"""A Hub id or a folder -> a judge's model with all of its weights, and what tells them from others of its name."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils.hub import cached_file, extract_commit_hash

from sharegpt4o_image.errors import UserError

_DIGEST_LENGTH = 16


def load_complete(model_class: Any, name: str, revision: str = "main") -> tuple[Any, str | None]:
    """The model in float32, and the commit of its files or, of a folder, the digest of its weights.

    transformers makes up weights that are not there; here they are an error.
    """
    commit = commit_of(name, revision)
    model, report = model_class.from_pretrained(
        name, revision=commit or revision, dtype=torch.float32, output_loading_info=True
    )
    missing = report["missing_keys"] & dict(model.named_parameters()).keys()
    if missing:
        raise ValueError(f"it has no {min(missing)}")
    return model, commit or weights_digest(Path(name))


def commit_of(name: str, revision: str = "main") -> str | None:
    """The commit of a Hub id's files; `None` for a folder."""
    return extract_commit_hash(cached_file(name, "config.json", revision=revision), None)


def short_name(name: str) -> str:
    """A Hub id as it is; of a folder or file the last part of its path: scores are shown to others, and kept verdicts
    are good wherever it lies.
    """
    path = Path(name)
    return path.resolve().name if path.exists() else name


def weights_digest(folder: Path) -> str | None:
    """The beginning of the sha256 over a local checkpoint's weights; `None` where there is no such folder."""
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_DIGEST_LENGTH] if files else None


@contextmanager
def told_as_user_error(what: str) -> Iterator[None]:
    """Name what cannot be loaded, and why."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what} cannot be loaded; give a Hub id or a folder with its files: {reason}") from None
