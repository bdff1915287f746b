# SPDX-License-Identifier: Apache-2.0
"""Rows -> a Parquet file: bounded memory, image bytes as received, same rows same file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Json, config
from datasets.arrow_writer import get_parquet_column_options

ROW_GROUP_BYTES = 32 * 1024**2  # what pyarrow fetches at once anyway (its `range_size_limit`), and what is in memory
SHARD_BYTES = 500 * 1024**2  # `datasets` uses the same
# Whoever looks at the first row of a set on the Hub fetches the whole first file, if it is no larger than what
# `HfFileSystem` reads ahead (5 MiB), and some 40 MB of a larger one. So the first file is small. Our choice.
FIRST_SHARD_BYTES = 4 * 1024**2
TEXT_BYTES = 2048  # a round figure for what a row holds beside its pictures


class ParquetFile:
    """A Parquet file written row by row; a row group is closed before it would hold more than `row_group_bytes`."""

    def __init__(self, path: Path, features: Features, row_group_bytes: int = ROW_GROUP_BYTES):
        self.path = path
        self.num_rows = 0
        self.num_bytes = 0  # of the rows in memory, the `num_bytes` of a data set card
        self._schema = features.arrow_schema
        self._json_columns = [name for name, feature in features.items() if isinstance(feature, Json)]
        self._row_group_bytes = row_group_bytes
        self._rows: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            use_content_defined_chunking=config.DEFAULT_CDC_OPTIONS,
            write_page_index=True,
            **get_parquet_column_options(features, self._schema),
        )
        self._writer.add_key_value_metadata({"content_defined_chunking": json.dumps(config.DEFAULT_CDC_OPTIONS)})

    def write(self, row: dict[str, Any], size: int) -> None:
        """Add a row of about `size` bytes."""
        if self._rows and self._pending_bytes + size > self._row_group_bytes:
            self._flush()
        canonical = {name: _canonical_json(row[name]) for name in self._json_columns}
        self._rows.append({**row, **canonical})
        self.num_rows += 1
        self._pending_bytes += size

    def close(self) -> None:
        """Write what is left, and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self.num_bytes += table.nbytes
        self._rows, self._pending_bytes = [], 0


def _canonical_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
