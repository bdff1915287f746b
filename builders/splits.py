# SPDX-License-Identifier: Apache-2.0
"""Planned rows -> splits, by a hash of what they show: rows that share a picture are never parted.

A row's split depends on its own pictures alone, so it stays when rows are added, and does not depend on their order.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from sharegpt4o_image.builders.row_source import RowPlan
from sharegpt4o_image.errors import UserError

TRAIN = "train"
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*")


def parse_splits(options: Sequence[str]) -> dict[str, float]:
    """Shares of the rows that go to other splits than `train`.

    >>> parse_splits(["validation=0.01", "test=0.02"])
    {'validation': 0.01, 'test': 0.02}
    """
    shares: dict[str, float] = {}
    for option in options:
        name, _, share = option.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise UserError(f"--split {option} is no split; write NAME=SHARE, such as test=0.01") from None
        if not SPLIT_NAME.fullmatch(name) or name == TRAIN or not 0 < shares[name] < 1:
            raise UserError(
                f"--split {option} is no split; give a lower-case name other than train, and a share between 0 and 1"
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
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return TRAIN


def _group_by_pictures(plans: Sequence[RowPlan]) -> list[str]:
    """For every row the picture that stands for all that are linked with its own: the first in the plan."""
    parents: dict[str, str] = {}

    def find(picture: str) -> str:
        while (parent := parents.setdefault(picture, picture)) != picture:
            parents[picture] = picture = parents[parent]
        return picture

    for plan in plans:
        roots = [find(picture) for picture in plan.pictures]
        for root in roots[1:]:
            parents[root] = roots[0]
    return [find(plan.pictures[0]) if plan.pictures else plan.id for plan in plans]
