# SPDX-License-Identifier: Apache-2.0
"""Planned rows -> splits, by a hash of what they show: rows that share a picture are never parted.

The split of a row that shares no picture with others stays when rows are added, and so does that of a row whose group
of linked pictures stays the same. Pictures are told apart by content in a run, and by name in an upstream release.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from sharegpt4o_image.builders.row_source import RowPlan
from sharegpt4o_image.errors import UserError

TRAIN = "train"
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_TAKEN = (TRAIN, "all")  # `datasets` reads "all" as every split


def parse_splits(options: Sequence[str]) -> dict[str, float]:
    """Shares of the rows that go to other splits than `train`.

    >>> parse_splits(["validation=0.01", "test=0.02"])
    {'validation': 0.01, 'test': 0.02}
    """
    shares: dict[str, float] = {}
    for option in options:
        name, _, share = option.partition("=")
        if name in shares:
            raise UserError(f"--split names {name} twice; give each split once")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"--split {option} is no split; write NAME=SHARE, such as test=0.01") from None
        if not SPLIT_NAME.fullmatch(name) or name in _TAKEN or not 0 < shares[name] < 1:
            raise UserError(
                f"--split {option} is no split; give a short name in lower case, not train, and a share below 1"
            )
    if sum(shares.values()) >= 1:
        raise UserError("the shares of --split leave nothing for train; let them sum to less than 1")
    return shares


def assign_splits(plans: Sequence[RowPlan], shares: Mapping[str, float]) -> list[str]:
    """The split of every row; without shares, the one that it has, or `train`."""
    if not shares:
        return [plan.split or TRAIN for plan in plans]
    if any(plan.split is not None for plan in plans):
        raise UserError("this data set has its splits already; give --split when packing the run or release itself")
    groups = _group_by_pictures(plans)
    return [_draw(group, shares) for group in groups]


def _draw(group: str, shares: Mapping[str, float]) -> str:
    """The split that a hash falls into: the shares cover the beginning of [0, 1), `train` the rest."""
    position = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) / 2**64
    for name, share in sorted(shares.items()):
        if position < share:
            return name
        position -= share
    return TRAIN


def _group_by_pictures(plans: Sequence[RowPlan]) -> list[str]:
    """For every row the picture that stands for all that are linked with its own: the least of them."""
    parents: dict[str, str] = {}

    def find(picture: str) -> str:
        while (parent := parents.setdefault(picture, picture)) != picture:
            parents[picture] = picture = parents[parent]
        return picture

    for plan in plans:
        roots = [find(picture) for picture in plan.pictures]
        for root in roots:
            parents[root] = min(roots)
    return [find(plan.pictures[0]) if plan.pictures else plan.id for plan in plans]
