# SPDX-License-Identifier: Apache-2.0
"""Which conditions of a sample are dropped: drawn from (seed, epoch, sample) alone.

So the draws are the same on any number of processes, in any batch and after a resumed run.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

# P image tokens, N sources of the sample


@dataclass(frozen=True)
class Dropout:
    """The rates of the masks, each a share between 0 and 1; [`Janus4oSFTConfig`] says where they come from.

    Args:
        prompt: text to image: the prompt becomes pads.
        prompt_granularity: `"block"`: all of it; `"token"`: each token by itself.
        source_code: edits: the codes of a source stay pads.
        source_code_granularity: `"block"`: all P; `"token"`: each by itself.
        instruction: edits: the instruction alone becomes pads.
        null: edits: instruction, codes and picture all become pads.
    """

    prompt: float = 0.0
    prompt_granularity: str = "block"
    source_code: float = 0.0
    source_code_granularity: str = "block"
    instruction: float = 0.0
    null: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """What was drawn for one sample.

    Args:
        is_null: every condition is dropped: only BOS and boi remain.
        drops_text: the text is dropped, sources stay.
        dropped_text: bool (number of text tokens,), where tokens are dropped one by one; `None` otherwise.
        dropped_source_codes: bool (N, P).
    """

    is_null: bool
    drops_text: bool
    dropped_text: np.ndarray | None
    dropped_source_codes: np.ndarray


def draw(
    dropout: Dropout, seed: int, epoch: int, sample_id: str, num_sources: int, num_codes: int, num_text_tokens: int
) -> Drawn:
    """Draw the masks of one sample.

    The first two draws are made for every sample, whatever the rates are: raising one rate does not change which
    samples another one hits.
    """
    rng = np.random.default_rng(_seed_of(seed, epoch, sample_id))
    condition = rng.random()
    code_draws = rng.random((num_sources, num_codes if dropout.source_code_granularity == "token" else 1))
    dropped_codes = np.broadcast_to(code_draws < dropout.source_code, (num_sources, num_codes))
    if num_sources:
        is_null = condition < dropout.null
        drops_text = not is_null and condition >= 1 - dropout.instruction
        return Drawn(is_null, drops_text, None, dropped_codes)
    if dropout.prompt_granularity == "token":
        return Drawn(False, False, rng.random(num_text_tokens) < dropout.prompt, dropped_codes)
    return Drawn(condition < dropout.prompt, False, None, dropped_codes)


def _seed_of(seed: int, epoch: int, sample_id: str) -> int:
    key = f"{seed}/{epoch}/{sample_id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")
