# SPDX-License-Identifier: Apache-2.0
"""A packed folder or Hub repository -> a folder in the layout of another tool.

    janus-json   upstream's own training layout    text_to_image.json  image/0.png
    webdataset   tar files                         text_to_image-00000.tar
    imagefolder  `imagefolder` of `datasets`       text_to_image/metadata.parquet  text_to_image/images/
    messages     TRL and ms-swift                  messages.jsonl  images/

beside README.md, and skipped.jsonl only where the layout cannot hold a row.
"""

import json
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from sharegpt4o_image.builders.card_metadata import license_fields
from sharegpt4o_image.builders.card_text import code, counted, limited, prose, ranked, table
from sharegpt4o_image.builders.export_layouts import CardConfig, ImageFolder, JanusJson, Layout, Messages, WebDataset
from sharegpt4o_image.builders.export_rows import RowRefused, StoredRows, open_rows, read_row
from sharegpt4o_image.builders.staging import require_place, staged_folder
from sharegpt4o_image.errors import UserError

LAYOUTS: dict[str, type[Layout]] = {
    "janus-json": JanusJson,
    "webdataset": WebDataset,
    "imagefolder": ImageFolder,
    "messages": Messages,
}
README = "README.md"
SKIPPED = "skipped.jsonl"

OnProgress = Callable[[int, int], None]


@dataclass
class ExportSummary:
    """What was written.

    Args:
        rows (`dict`): configuration -> rows.
        num_pictures (`int`), num_bytes (`int`): pictures, and what they take.
        skipped (`Counter`): reason -> rows that were left out.
        licenses (`Counter`): `origin` and `license` as a JSON list -> rows.
    """

    out_dir: Path
    to: str
    rows: dict[str, int] = field(default_factory=dict)
    num_pictures: int = 0
    num_bytes: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> str:
        """The summary as one line of JSON."""
        shown = {name: value for name, value in vars(self).items() if name != "licenses"}
        return json.dumps(shown | {"out_dir": str(self.out_dir)})

    def to_text(self) -> str:
        """The summary for people."""
        lines = [f"{config}: {counted(count, 'row')}" for config, count in self.rows.items()]
        lines.append(f"{self.num_pictures:,} pictures, {self.num_bytes / 1e6:,.2f} MB, in {self.out_dir} ({self.to})")
        if self.skipped:
            lines.append(f"{counted(self.skipped.total(), 'row')} left out, see {self.out_dir / SKIPPED}:")
            lines += [f"  {count:,}: {reason}" for reason, count in self.skipped.most_common()]
        return "\n".join(lines)


def export_dataset(
    dataset: str | Path,
    out_dir: Path,
    to: str,
    *,
    config: str | None = None,
    split: str = "train",
    limit: int | None = None,
    on_progress: OnProgress | None = None,
) -> ExportSummary:
    """Write rows in the layout of another tool; pictures keep their bytes, and the same rows give the same files.

    The folder appears whole or not at all, and replaces one that the same export wrote. A row that the layout cannot
    hold is listed with the reason in the summary and in `skipped.jsonl`.

    Reads: `dataset`, as a stream.
    Writes: `out_dir`, as shown at the top of this module.

    Args:
        dataset (`str` or `Path`):
            A folder that `pack` wrote, or the id of a repository on the Hub.
        out_dir (`Path`):
            An absent or empty folder, or one that was written by an export in the same layout.
        to (`str`):
            `janus-json`, `webdataset`, `imagefolder` or `messages`.
        config (`str`, *optional*):
            Only this configuration; without it, all but those of refused pictures.
        split (`str`, *optional*, defaults to `"train"`):
            Which split.
        limit (`int`, *optional*):
            Most rows of each configuration.
        on_progress (callable, *optional*):
            Called with the number of rows dealt with, and of all.
    """
    layout = LAYOUTS.get(to)
    if layout is None:
        raise UserError(f"--to {to} is not known; choose {', '.join(LAYOUTS)}")
    target = out_dir.resolve()
    if Path(dataset).is_dir() and target.is_relative_to(Path(dataset).resolve()):
        raise UserError(f"{out_dir} lies in the data set's own folder; choose another one with --output")
    _refuse_foreign(target, to, layout)
    parts = open_rows(str(dataset), config, split, limit)
    with staged_folder(target) as folder:
        return _Export(folder, ExportSummary(out_dir, to), parts, on_progress).run(layout, split, str(dataset))


class _Export:
    """One export under way."""

    def __init__(self, folder: Path, summary: ExportSummary, parts: list[StoredRows], on_progress: OnProgress | None):
        self._folder = folder
        self._summary = summary
        self._parts = parts
        self._on_progress = on_progress
        self._ids: set[str] = set()
        self._num_done = 0
        self._num_rows = sum(part.num_rows or 0 for part in parts)

    def run(self, layout: type[Layout], split: str, dataset: str) -> ExportSummary:
        """Write all configurations, then the README."""
        card: dict[str, CardConfig] = {}
        for part in self._parts:
            with closing(layout(self._folder, part.config, part.metadata_features)) as writer:
                self._write_rows(part, writer)
            card |= writer.card_configs()
        if not any(self._summary.rows.values()):
            reasons = ", ".join(self._summary.skipped) or "there are none"
            raise UserError(f"{dataset} has no row that {self._summary.to} can hold: {reasons}; try another layout")
        readme = render_readme(self._summary, layout, card, Path(dataset).name, split)
        (self._folder / README).write_text(readme, encoding="utf-8")
        return self._summary

    def _write_rows(self, part: StoredRows, writer: Layout) -> None:
        self._summary.rows[part.config] = 0
        for raw in part:
            try:
                self._write_row(part.config, raw, writer)
            except RowRefused as refusal:
                self._skip(part.config, raw["id"], str(refusal))
            self._num_done += 1
            if self._on_progress is not None:
                self._on_progress(self._num_done, max(self._num_done, self._num_rows))

    def _write_row(self, config: str, raw: dict[str, Any], writer: Layout) -> None:
        row = read_row(raw)
        if row.id in self._ids:
            raise RowRefused("id occurs twice")
        self._ids.add(row.id)
        writer.write(row)
        self._summary.rows[config] += 1
        self._summary.licenses[json.dumps([row.metadata.get("origin"), row.metadata.get("license")])] += 1
        self._summary.num_pictures += len(row.pictures)
        self._summary.num_bytes += sum(len(picture.data) for picture in row.pictures.values())

    def _skip(self, config: str, row_id: str, reason: str) -> None:
        self._summary.skipped[reason] += 1
        with (self._folder / SKIPPED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"config": config, "id": row_id, "reason": reason}, ensure_ascii=False) + "\n")


def render_readme(
    summary: ExportSummary, layout: type[Layout], card: dict[str, CardConfig], dataset_name: str, split: str
) -> str:
    """What the folder is and how it is used; its YAML tells `load_dataset` configurations and columns."""
    first = next(iter(card or summary.rows))
    rows = {name: config.num_rows for name, config in card.items()} or summary.rows
    counts = ", ".join(f"{count:,} of `{config}`" for config, count in rows.items())
    left_out = f" Left out: {summary.skipped.total():,}, see `{SKIPPED}`." if summary.skipped else ""
    body = [
        _marker(summary.to),
        f"# {prose(dataset_name)} as {summary.to}",
        f"Rows of the split `{split}`: {counts}.{left_out}",
        layout.how_to.replace("{config}", first).replace("{split}", split),
        "## Origin and licence",
        _origin_and_license(summary, dataset_name),
    ]
    return _front_matter(card, split, _licenses(summary)) + "\n\n".join(body) + "\n"


def _origin_and_license(summary: ExportSummary, dataset_name: str) -> str:
    pairs = [(*json.loads(pair), count) for pair, count in ranked(summary.licenses)]
    lines = [(_or_none(origin), _or_none(name), count) for origin, name, count in pairs]
    return (
        f"Exported from the data set {code(dataset_name)}. Its card says which models made the rows and how, and "
        "whose terms apply besides the licence; what it says holds for this folder, too.\n\n"
        + table(("Origin", "Licence", "Rows"), limited(lines))
    )


def _or_none(text: str | None) -> str:
    return "none stated" if text is None else code(text)


def _licenses(summary: ExportSummary) -> set[str | None]:
    return {json.loads(pair)[1] for pair in summary.licenses}


def _front_matter(configs: dict[str, CardConfig], split: str, licenses: set[str | None]) -> str:
    """YAML; a licence is stated there only where all rows name it."""
    card = DatasetCardData()
    if len(licenses) == 1:
        for name, value in license_fields(*licenses).items():
            card[name] = value
    if configs:
        card["configs"] = [
            {"config_name": name, "data_files": [{"split": split, "path": config.files}]}
            for name, config in configs.items()
        ]
    infos = {name: DatasetInfo(features=config.features) for name, config in configs.items() if config.features}
    DatasetInfosDict(infos).to_dataset_card_data(card)
    content = card.to_dict()
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n\n" if content else ""


def _marker(to: str) -> str:
    """How a later run knows the folder as its own."""
    return f"<!-- written by `sharegpt4o-image export --to {to}` -->"


def _refuse_foreign(out_dir: Path, to: str, layout: type[Layout]) -> None:
    """Only an absent folder, an empty one, or one that the same export wrote and nobody added to may be replaced."""
    elsewhere = "choose another folder with --output"
    if not require_place(out_dir):
        return
    names = [path.relative_to(out_dir).as_posix() for path in sorted(out_dir.rglob("*"))]
    foreign = next(
        (name for name in names if name not in (README, SKIPPED) and not layout.own_files.fullmatch(name)), None
    )
    if foreign is not None:
        raise UserError(f"{out_dir} holds something else ({foreign}); move it, or {elsewhere}")
    readme = out_dir / README
    if names and not (readme.is_file() and _marker(to) in readme.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{out_dir} was not written by `export --to {to}`; move it, or {elsewhere}")
