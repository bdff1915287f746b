# SPDX-License-Identifier: Apache-2.0
"""A run, an upstream release or a packed set -> `datasets` rows by a builder class, for code that wants one.

    builder = ShareGPT4oImage("runs/tour", config_name="text_to_image")
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")

`pack` is the other way, and the one to publish by: a builder starts again when it is interrupted, and has no place for
the rows that it leaves out but the log.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import BuilderConfig, DatasetInfo, DownloadManager, GeneratorBasedBuilder, SplitGenerator
from datasets.builder import Key

from sharegpt4o_image.builders.pack_plan import REPEATED
from sharegpt4o_image.builders.record_check import find_fault
from sharegpt4o_image.builders.row_source import RowFault, RowPlan
from sharegpt4o_image.builders.source_kinds import open_source
from sharegpt4o_image.builders.splits import TRAIN
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.schema import TASKS, content_id, published_features

ROWS_OF_A_PART = 256  # what one of several processes takes at a time; our choice

log = logging.getLogger(__name__)


@dataclass
class ShareGPT4oImageConfig(BuilderConfig):
    """One task of a source.

    Args:
        source (`str`): a run directory, a folder or repository with the upstream release, or a packed set.
    """

    source: str = ""


class ShareGPT4oImage(GeneratorBasedBuilder):
    """The configurations `text_to_image` and `text_and_image_to_image` of a source.

    Args:
        source (`str` or `Path`): where the rows come from; see [`ShareGPT4oImageConfig`].
        kwargs: what every builder takes, such as `config_name` and `cache_dir`.
    """

    VERSION = "1.0.0"
    BUILDER_CONFIG_CLASS = ShareGPT4oImageConfig
    BUILDER_CONFIGS = [ShareGPT4oImageConfig(name=task) for task in TASKS]  # noqa: RUF012
    DEFAULT_CONFIG_NAME = TASKS[0]
    DEFAULT_WRITER_BATCH_SIZE = 16  # rows of 2 to 4 MB

    def __init__(self, source: str | Path, **kwargs: Any):
        with closing(open_source(str(source))) as opened:
            self._row = opened.row
            digest = content_id(rows=[plan.digest for plan in opened.plan()])
        super().__init__(source=str(source), hash=digest, **kwargs)

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=published_features(self._row))

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        splits: dict[str, list[RowPlan]] = {}
        seen: set[str] = set()
        with closing(open_source(self.config.source)) as source:
            for plan in source.plan():
                if plan.task != self.config.name or plan.is_negative:
                    continue
                reason = plan.fault or (REPEATED if plan.id in seen else None)
                if reason is not None:
                    _warn(plan, reason)
                    continue
                seen.add(plan.id)
                splits.setdefault(plan.split or TRAIN, []).append(plan)
        if not splits:
            raise UserError(f"{self.config.source} has no rows for {self.config.name}; name the other configuration")
        return [SplitGenerator(name, {"parts": _parts(plans)}) for name, plans in splits.items()]

    def _generate_examples(self, parts: list[list[RowPlan]]) -> Iterator[tuple[Key, dict[str, Any]]]:
        with closing(open_source(self.config.source)) as source:
            for number, part in enumerate(parts):
                for index, plan in enumerate(part):
                    try:
                        record = source.load(plan)
                    except RowFault as fault:
                        _warn(plan, fault.reason)
                        continue
                    reason = find_fault(record, decodes=not source.has_looked)
                    if reason is None:
                        yield Key(number, index), record.model_dump()
                    else:
                        _warn(plan, reason)


def _parts(plans: list[RowPlan]) -> list[list[RowPlan]]:
    return [plans[start : start + ROWS_OF_A_PART] for start in range(0, len(plans), ROWS_OF_A_PART)]


def _warn(plan: RowPlan, reason: str) -> None:
    log.warning("left out %s (%s): %s", plan.location, plan.id, reason)
