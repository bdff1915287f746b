# SPDX-License-Identifier: Apache-2.0
"""ShareGPT-4o-Image: data synthesis, data sets, training, generation and evaluation for Janus-4o."""

from pathlib import Path

__all__ = ["__version__", "register"]

__version__ = "0.1.0"


def register(source: str | Path) -> None:
    """Let `load_dataset("sharegpt4o-image")` load a packed folder, or a repository on the Hub, from anywhere.

    This wraps two private functions of `datasets`, for this process; see `builders/registration.py`.

    Args:
        source (`str` or `Path`): `owner/name`, or a folder that `pack` wrote.
    """
    from sharegpt4o_image.builders.registration import register as register_source

    register_source(source)
