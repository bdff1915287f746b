# SPDX-License-Identifier: Apache-2.0
"""Rows -> `train-00000-of-0000N.parquet`: bounded memory, image bytes as received, same rows same file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Json, config
from datasets.arrow_writer import get_parquet_column_options

from sharegpt4o_image.schema import Record

ROW_GROUP_BYTES = 32 * 1024**2  # what one reader of one row has to fetch, and what the writer holds in memory
SHARD_BYTES = 500 * 1024**2  # `datasets` uses the same


class ParquetFile:
    """A Parquet file written row by row; a row group is closed when it holds `row_group_bytes`."""

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
        canonical = {name: _canonical_json(row[name]) for name in self._json_columns}
        self._rows.append({**row, **canonical})
        self.num_rows += 1
        self._pending_bytes += size
        if self._pending_bytes >= self._row_group_bytes:
            self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self.num_bytes += table.nbytes
        self._rows, self._pending_bytes = [], 0


class ShardedParquet:
    """The shards of one configuration, in `folder`; a shard is closed when its rows hold `shard_bytes`."""

    def __init__(self, folder: Path, features: Features, shard_bytes: int, row_group_bytes: int):
        self.folder = folder
        self.num_rows = 0
        self.num_bytes = 0
        self._features = features
        self._shard_bytes = shard_bytes
        self._row_group_bytes = row_group_bytes
        self._open: ParquetFile | None = None
        self._open_bytes = 0
        self._closed: list[Path] = []
        folder.mkdir()

    def write(self, record: Record) -> None:
        """Add one record."""
        if self._open is None:
            path = self.folder / f"shard-{len(self._closed):05d}.parquet"
            self._open = ParquetFile(path, self._features, self._row_group_bytes)
        size = record_size(record)
        self._open.write(record.model_dump(), size)
        self._open_bytes += size
        if self._open_bytes >= self._shard_bytes:
            self._close_shard()

    def finish(self) -> list[Path]:
        """Close the last shard and give all of them their published names, which state how many there are."""
        self._close_shard()
        published = []
        for index, path in enumerate(self._closed):
            published.append(path.rename(self.folder / f"train-{index:05d}-of-{len(self._closed):05d}.parquet"))
        return published

    def _close_shard(self) -> None:
        if self._open is None:
            return
        self._open.close()
        self.num_rows += self._open.num_rows
        self.num_bytes += self._open.num_bytes
        self._closed.append(self._open.path)
        self._open, self._open_bytes = None, 0


def record_size(record: Record) -> int:
    """About how many bytes a record takes: its pictures, and a round figure for the text beside them."""
    text_bytes = 2048
    return len(record.output_image.bytes) + sum(len(image.bytes) for image in record.input_image) + text_bytes


def _canonical_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
