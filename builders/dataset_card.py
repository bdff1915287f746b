# SPDX-License-Identifier: Apache-2.0
"""Counts taken while packing -> README.md of the data set, from the template `dataset_card.md`.

It states what the rows say and nothing else: no row, no claim.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from datasets import Features, Image, Json, List

from sharegpt4o_image.builders.card_counts import CardFacts, RowCounts
from sharegpt4o_image.builders.card_metadata import UPSTREAM, features_of, render_metadata
from sharegpt4o_image.builders.card_text import (
    code,
    count_table,
    counted,
    dollars,
    join_words,
    literal,
    megabytes,
    prose,
    table,
)
from sharegpt4o_image.builders.coverage_plots import (
    LABEL_COLUMNS,
    PLOTS_DIR,
    RESOLUTIONS,
    TAXONOMY_COLUMNS,
    plotted_columns,
)
from sharegpt4o_image.builders.pack_plan import NEGATIVES
from sharegpt4o_image.schema import LabelledRecord, RejectedRecord

TEMPLATE = Path(__file__).with_name("dataset_card.md")
MARKER = "<!-- written by `sharegpt4o-image pack`"  # how a later run knows the folder as its own

_PAPER = "[2506.18095](https://arxiv.org/abs/2506.18095)"

MAX_TABLE = 14  # values of a column that are listed beside its plot: the tasks of editing fit

COLUMNS = {
    "id": "hash of the request that made the row",
    "task": "`text_to_image` or `text_and_image_to_image`",
    "input_prompt": "the prompt, or the edit instruction",
    "input_image": "source pictures of an edit; empty for text-to-image",
    "output_image": "the picture",
    "output_image_resolution": "width and height of `output_image`, in pixels",
    "input_image_resolution": "width and height of the (first) source picture",
    "pipeline": "`prompt_first`, `image_first`, `document` or `editing`",
    "objects": "what the topic asked to be shown",
    "background": "background of the topic",
    "style": "style of the topic",
    "lighting": "lighting of the topic",
    "camera": "camera of the topic",
    "composition": "composition of the topic",
    "document_type": "kind of document, for document pictures",
    "edit_category": "category of the edit task",
    "edit_task": "what kind of edit was asked for",
    "prompt_model": "model asked for the prompt",
    "image_model": "model asked for the picture",
    "served_model": "model that the answer to the prompt request named; picture answers name none",
    "template_version": "version of the prompt template",
    "image_params": "parameters of the image request",
    "source_id": "id of the source picture",
    "source_origin": "where the source picture comes from",
    "source_license": "licence of the source picture",
    "output_sha256": "sha256 of the bytes of `output_image`",
    "output_phash": "perceptual hash of `output_image`",
    "usage": "tokens that the service counted",
    "cost_usd": "cost of prompt and picture, in US dollars",
    "created_at": "when the picture was made",
    "origin": "`synthesized`, or `upstream_release` for a row of the original ShareGPT-4o-Image",
    "license": "licence of the row",
    "reject_reason": "why a quality gate refused the picture",
    "label_objects": "what a model saw in the picture",
    "label_style": "style, as that model saw it",
    "label_lighting": "lighting, as that model saw it",
    "label_camera": "camera, as that model saw it",
    "label_composition": "composition, as that model saw it",
    "label_document_type": "kind of document, as that model saw it",
    "label_edit_category": "category of the edit, as that model saw it",
    "label_edit_task": "kind of edit, as that model saw it",
    "label_model": "model that gave the labels; null where the row has none",
    "label_confidence": "how sure that model was of each label, from 0 to 1",
}

PROVENANCE = {
    "image_model": "Image model asked (`image_model`)",
    "prompt_model": "Text model asked (`prompt_model`)",
    "served_model": "Text model that answered (`served_model`)",
    "template_version": "Template (`template_version`)",
    "pipeline": "Pipeline (`pipeline`)",
    "origin": "Origin (`origin`)",
    "source_origin": "Origin of source pictures (`source_origin`)",
}

_STATUSES = {
    "ok": "answered",
    "blocked": "refused by the moderation of the service",
    "invalid": "answered, but the answer was of no use",
    "retry": "refused for the moment, and asked again",
    "quota": "refused because the quota was spent",
    "lost": "cut off; what became of it is not known",
}


def render_card(facts: CardFacts) -> str:
    """The README of a data set: YAML for the Hub and for `load_dataset`, then the text for people."""
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=render_metadata(facts),
        title=prose(facts.title),
        verify_command=code(f"sharegpt4o-image verify {shlex.quote(facts.title)}"),
        asked_for=_asked_for(facts),
        origin_of_files=_origin_of_files(facts),
        loading=_loading(facts),
        rows_table=_rows_table(facts),
        kept_out=_kept_out(facts),
        recipe=_recipe(facts),
        provenance_tables=_provenance(facts.rows),
        requests=_requests(facts),
        cost_and_dates=_cost_and_dates(facts),
        notes=_notes(facts),
        coverage=_coverage(facts.rows),
        labels=_labels(facts),
        columns_table=_columns(facts),
        licenses=_licenses(facts),
        marks_of_origin=_marks_of_origin(facts),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # where a section has nothing to say


# ------------------------------------------------------------------ files and rows


def _asked_for(facts: CardFacts) -> str:
    is_edit = ["text_and_image" in name for name in facts.splits] or [False]
    return join_words(
        [*(["it"] if not all(is_edit) else []), *(["the change to a source picture"] if any(is_edit) else [])]
    )


def _origin_of_files(facts: CardFacts) -> str:
    """Whether pictures are as they were received."""
    name = code(facts.source.name)
    if facts.encoding is not None:
        return (
            f"**This is a light variant of {name}**: {_how_encoded(facts)} `output_sha256` and the resolutions are "
            "those of the new files; `id` and `output_phash` are those of the full picture."
        )
    if facts.source.kind == "data_set":
        return f"Pictures are byte for byte those of the data set {name}, from which this one was packed."
    return "Pictures are stored byte for byte as they were received."


def _how_encoded(facts: CardFacts) -> str:
    assert facts.encoding is not None
    encoding = facts.encoding
    steps = [
        f"shrunk to at most {encoding.max_side:,} pixels a side" if encoding.max_side else None,
        f"stored as {encoding.format.upper()}" if encoding.format else "stored in their own format",
        f"at quality {encoding.quality}" if encoding.quality else None,
    ]
    return f"pictures were decoded, turned upright, {join_words([step for step in steps if step])}."


def _marks_of_origin(facts: CardFacts) -> str:
    if facts.encoding is not None:
        return (
            "Every picture was encoded anew: signed records of origin that a service put into its files (C2PA) are "
            "gone, and what was written into the pixels, as watermarks are, may have suffered."
        )
    if facts.source.kind == "data_set":
        return (
            "Packing encoded no picture anew: marks of origin (C2PA, watermarks) are as in the data set named above."
        )
    return (
        "No file was encoded anew, so marks of origin that a service put into its files (C2PA, watermarks) are still "
        "there."
    )


def _loading(facts: CardFacts) -> str:
    if not facts.splits:
        return "There is nothing to load yet."
    title = literal(facts.title)
    lines = ["from datasets import load_dataset", ""]
    lines += [
        f'rows = load_dataset({title}, "{config}", split="{split}")  # {counted(counts.num_rows, "row")}'
        for config, splits in facts.splits.items()
        for split, counts in splits.items()
    ]
    config = list(facts.splits)[-1] if "text_and_image_to_image" not in facts.splits else "text_and_image_to_image"
    split = next(iter(facts.splits[config]))
    column, value = _example_filter(facts.rows, config)
    lines += [
        'rows[0]["input_prompt"], rows[0]["output_image"]',
        "",
        f'stream = load_dataset({title}, "{config}", split="{split}", streaming=True)  # downloads as it goes',
        "labels = load_dataset(  # no picture is read",
        f'    {title}, "{config}", split="{split}", streaming=True,',
        f'    columns=["id", "{column}"], filters=[("{column}", "==", {literal(value)})],',
        '    storage_options={"hf": {"block_size": 1}},  # on the Hub, else 5 MiB are read ahead after each column',
        ")",
    ]
    code_block = "\n".join(lines)
    return (
        f"```python\n{code_block}\n```\n\n"
        f"The name {code(facts.title)} works from the directory that holds the folder; on the Hub it is `owner/name`."
    )


def _example_filter(rows: RowCounts, config: str) -> tuple[str, str]:
    """A column with the value that most rows have, for the example of a filter."""
    is_edit = config.startswith("text_and_image_to_image")
    for column in ("edit_category", "label_edit_category") if is_edit else ("pipeline", "label_style"):
        if values := rows.values.get(column):
            return column, min(values, key=lambda value: (-values[value], value))
    return "task", config.removesuffix(NEGATIVES)


def _rows_table(facts: CardFacts) -> str:
    return table(
        ("Configuration", "Split", "Rows", "Files", "Size"),
        (
            (f"`{name}`", f"`{split}`", counts.num_rows, counts.num_shards, megabytes(counts.file_bytes))
            for name, splits in facts.splits.items()
            for split, counts in splits.items()
        ),
    )


def _kept_out(facts: CardFacts) -> str:
    parts = []
    if facts.row is RejectedRecord:
        parts.append(
            "**Every row here is a negative**: a quality gate of the pipeline refused its picture, and "
            "`reject_reason` says why. The rows that passed are published elsewhere."
        )
    if facts.negatives.num_rows:
        parts.append(
            f"The configurations that end in `{NEGATIVES}` hold pictures that a quality gate refused, and only those; "
            "`reject_reason` says why. The figures below leave them out."
        )
        parts.append(count_table("Why a picture is a negative", facts.negatives.values.get("reject_reason", {})))
    if not facts.rejections:
        return "\n\n".join([*parts, "Packing kept no row out."])
    number = counted(facts.rejections.total(), "row")
    kept_out = f"Packing kept out {number}. `rejections.parquet` lists each with its reason."
    return "\n\n".join([*parts, kept_out, count_table("Reason", facts.rejections)])


# ------------------------------------------------------------------ where they come from


def _recipe(facts: CardFacts) -> str:
    origins = facts.rows.values.get("origin", Counter()) | facts.negatives.values.get("origin", Counter())
    parts = []
    if "synthesized" in origins:
        parts.append(
            f"The recipe is that of ShareGPT-4o-Image ({_PAPER}): a topic is drawn from a taxonomy, a language model "
            "writes a prompt or an edit instruction for it, and an image model draws the picture, for an edit from "
            "the source picture. `pipeline`, `template_version` and `image_params` say how a row was made."
        )
    if "upstream_release" in origins:
        parts.append(
            f"Rows whose `origin` is `upstream_release` were made by the authors of ShareGPT-4o-Image ({_PAPER}, "
            f"[{UPSTREAM}](https://huggingface.co/datasets/{UPSTREAM})). "
            "Their release names no model, date, category or licence for a row; such columns are null."
        )
    parts.append("Before packing, every picture was decoded and compared with its recorded size and checksum.")
    return "\n\n".join(parts)


def _provenance(rows: RowCounts) -> str:
    tables = [
        count_table(label, rows.values[column], None if column == "source_origin" else rows.num_rows)
        for column, label in PROVENANCE.items()
        if rows.values.get(column)
    ]
    return "\n\n".join([*tables, *_image_params(rows)])


def _image_params(rows: RowCounts) -> Iterator[str]:
    if not rows.image_params:
        return
    lines = [
        (*_model_and_parameters(request), count)
        for request, count in sorted(rows.image_params.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    yield table(("Image model", "Parameters of the request (`image_params`)", "Rows"), lines)


def _model_and_parameters(request: str) -> tuple[str, str]:
    model, parameters = json.loads(request)
    named = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(parameters.items()))
    return "null" if model is None else code(model), code(named) if named else "none"


def _requests(facts: CardFacts) -> str:
    """What a run asked, and what became of it."""
    parts = []
    if facts.source.attempts:
        asked = [
            (code(status), _STATUSES.get(status, ""), count)
            for status, count in sorted(facts.source.attempts.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
        total = sum(facts.source.attempts.values())
        parts.append(f"The run {code(facts.source.name)} sent {total:,} requests to its models.")
        parts.append(table(("Outcome", "Meaning", "Requests"), asked))
    if facts.source.rejections:
        total = sum(facts.source.rejections.values())
        parts.append(f"{total:,} samples of the run became no row here.")
        parts.append(count_table("Why a sample was rejected", facts.source.rejections, noun="Samples"))
    return "\n\n".join(parts)


def _cost_and_dates(facts: CardFacts) -> str:
    rows, sentences = facts.rows, []
    if rows.first_created_at and rows.last_created_at:
        sentences.append(
            f"The pictures were made between {prose(rows.first_created_at)} and {prose(rows.last_created_at)}."
        )
    if rows.num_costs:
        each = rows.cost_usd / rows.num_costs
        sentences.append(
            f"Recorded cost: {dollars(rows.cost_usd)} US dollars over {counted(rows.num_costs, 'row')}, "
            f"{dollars(each)} a row."
        )
    if facts.source.spent_usd is not None:
        sentences.append(
            f"The whole run cost {dollars(facts.source.spent_usd)} US dollars, answers that became no row included."
        )
    return " ".join(sentences) or "Neither dates nor costs were recorded."


def _notes(facts: CardFacts) -> str:
    if not facts.source.notes:
        return ""
    notes = "\n".join(f"- {prose(note)}" for note in facts.source.notes)
    return f"Of {code(facts.source.name)} as a whole:\n\n{notes}"


# ------------------------------------------------------------------ what they show


def _coverage(rows: RowCounts) -> str:
    """Tables of small vocabularies, plots of all."""
    sections = [*_columns_coverage(rows, TAXONOMY_COLUMNS)]
    if not sections:
        sections = ["The rows name no objects, styles or other categories."]
    if rows.resolutions:
        sections.append(_one_column("Resolution", RESOLUTIONS, rows.resolutions, rows))
    return "\n\n".join(sections)


def _columns_coverage(rows: RowCounts, titles: Mapping[str, str]) -> Iterator[str]:
    for column, title in titles.items():
        if rows.values.get(column):
            yield _one_column(f"{title} (`{column}`)", column, rows.values[column], rows)


def _one_column(heading: str, name: str, counter: Counter[str], rows: RowCounts) -> str:
    is_list = name.endswith("objects")
    extent = "occurrences" if is_list else f"of {counted(rows.num_rows, 'row')}"
    different = f"{len(counter):,} different value{'s' if len(counter) > 1 else ''} in {counter.total():,} {extent}."
    parts = [f"### {heading}", different]
    if len(counter) <= MAX_TABLE:
        parts.append(count_table("Value", counter, noun="Occurrences" if is_list else "Rows"))
    if name in plotted_columns(rows):
        parts.append(f"![How often each value of {name} occurs]({PLOTS_DIR}/{name}.png)")
    return "\n\n".join(parts)


def _labels(facts: CardFacts) -> str:
    """Who labelled, what came out, and how far it agrees with what is known."""
    if not issubclass(facts.row, LabelledRecord):
        return ""
    models = facts.rows.values.get("label_model", Counter())
    parts = [
        "## Labels",
        "The columns `label_*` were filled in afterwards by a model that saw the prompt and the pictures, and not "
        "what was known of the row. They are guesses; what was known when a row was made stands in the columns "
        "without `label_`.",
        count_table("Labelled by (`label_model`)", models, facts.rows.num_rows),
        _agreement(facts.source.agreement),
        *_columns_coverage(facts.rows, LABEL_COLUMNS),
    ]
    return "\n\n".join(part for part in parts if part)


def _agreement(agreement: Mapping[str, list[int]]) -> str:
    lines = [
        (code(column), compared, agreeing, f"{agreeing / compared:.1%}")
        for column, (agreeing, compared) in agreement.items()
        if compared
    ]
    if not lines:
        return "No row tells both a label and what was known, so how good the labels are is not known."
    heading = "On rows of which both are known:"
    return f"{heading}\n\n{table(('Column', 'Rows compared', 'Rows that agree', 'Share'), lines)}"


# ------------------------------------------------------------------ columns and terms


def _columns(facts: CardFacts) -> str:
    negatives = [name for name in facts.splits if name.endswith(NEGATIVES)]
    parts = [_columns_table(features_of(facts, ""))]
    if negatives and facts.row is not RejectedRecord:
        extra = features_of(facts, negatives[0]).keys() - features_of(facts, "").keys()
        missing = [name for name in features_of(facts, "") if name not in features_of(facts, negatives[0])]
        names = join_words([f"`{name}` ({COLUMNS[name]})" for name in sorted(extra)])
        without = f", and no {join_words([f'`{name}`' for name in missing])}" if missing else ""
        parts.append(f"{join_words([f'`{name}`' for name in negatives])} have {names} besides{without}.")
    return "\n\n".join(parts)


def _columns_table(features: Features) -> str:
    rows = ((f"`{name}`", _type_name(feature), COLUMNS[name]) for name, feature in features.items())
    return table(("Column", "Type", "What it holds"), rows)


def _type_name(feature: Any) -> str:
    if isinstance(feature, List):
        return f"list of {_type_name(feature.feature)}"
    if isinstance(feature, dict):
        return f"{_type_name(next(iter(feature.values())))} by name"
    return {Image: "image", Json: "JSON"}.get(type(feature)) or feature.dtype


def _licenses(facts: CardFacts) -> str:
    counts = facts.rows.licenses + facts.negatives.licenses
    pairs = [
        (*json.loads(pair), count) for pair, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    if not any(name for _, name, _ in pairs):
        return "The rows name no licence. Whoever publishes this data has to choose one that the terms below allow."
    lines = [(code(origin), code(name) if name else "none stated", count) for origin, name, count in pairs]
    parts = [
        "The column `license` states the licence of each row.",
        table(("Origin (`origin`)", "Licence (`license`)", "Rows"), lines),
        *_source_licenses(facts.rows.values),
    ]
    return "\n\n".join(parts)


def _source_licenses(values: Mapping[str, Counter[str]]) -> Iterable[str]:
    licenses = values.get("source_license")
    if licenses:
        yield count_table("Licence of the source pictures (`source_license`)", licenses)
