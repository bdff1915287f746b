# SPDX-License-Identifier: Apache-2.0
"""Counts taken while packing -> README.md of the data set, from the template `dataset_card.md`.

It states what the rows say and nothing else: no row, no claim.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from sharegpt4o_image.builders.card_counts import CardFacts, RowCounts
from sharegpt4o_image.builders.card_metadata import (
    CITATION,
    UPSTREAM,
    describe_columns,
    describe_ethics,
    describe_licenses,
    describe_limits,
    describe_terms,
    render_metadata,
)
from sharegpt4o_image.builders.card_text import (
    bullets,
    code,
    count_table,
    counted,
    dollars,
    join_words,
    limited,
    literal,
    megabytes,
    prose,
    ranked,
    table,
)
from sharegpt4o_image.builders.coverage_plots import LABEL_COLUMNS, describe_coverage, describe_values
from sharegpt4o_image.builders.pack_plan import NEGATIVES
from sharegpt4o_image.builders.row_source import SourceFacts
from sharegpt4o_image.schema import LabelledRecord, RejectedRecord

TEMPLATE = Path(__file__).with_name("dataset_card.md")
MARKER = "<!-- written by `sharegpt4o-image pack`"  # how a later run knows the folder as its own

_PAPER = "[2506.18095](https://arxiv.org/abs/2506.18095)"

PROVENANCE = {
    "image_model": "Image model asked (`image_model`)",
    "prompt_model": "Text model asked (`prompt_model`)",
    "served_model": "Text model that answered (`served_model`)",
    "template_version": "Template (`template_version`)",
    "pipeline": "Pipeline (`pipeline`)",
    "origin": "Origin (`origin`)",
    "source_origin": "Origin of source pictures (`source_origin`)",
}

_PIPELINES = {
    "prompt_first": "a topic is drawn from a taxonomy, a language model writes a prompt for it, and an image model "
    "draws the picture",
    "image_first": "a language model describes a photograph",
    "document": "a language model writes the content of a document and then a prompt for its page, and an image "
    "model draws the page",
    "editing": "an edit task is drawn, a language model writes an instruction for a source picture, and an image "
    "model changes the picture",
}

_STATUSES = {
    "ok": "answered",
    "blocked": "refused by the moderation of the service",
    "invalid": "answered, but the answer was of no use",
    "retry": "refused for the moment, and asked again",
    "quota": "refused because the quota was spent",
    "lost": "cut off; what became of it is not known",
}

_STAGES = {
    "prompt": "prompt", "image": "picture", "description": "description of a photograph", "content": "document",
    "layout": "prompt for its page", "instruction": "edit instruction", "control": "control picture of an edit",
    "edit": "edited picture", "judge": "opinion on a picture", "label": "labels",
}  # fmt: skip

_GATES = {
    "blank": "Refuse pictures of one colour",
    "exact_duplicates": "Refuse pictures whose bytes the run already has",
    "similar_within": "Refuse pictures whose hash differs in at most so many of 64 bits from one that the run has",
    "change": "Refuse edits that change nothing, and local ones that change nearly everything",
    "num_benchmark_lists": "Lists of prompts of benchmarks that no prompt may repeat",
}


def render_card(facts: CardFacts) -> str:
    """The README of a data set: YAML for the Hub and for `load_dataset`, then the text for people."""
    everything = _everything(facts)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=render_metadata(facts),
        title=prose(facts.title),
        verify_command=code(f"sharegpt4o-image verify {shlex.quote(facts.title)}"),
        what_it_is=_what_it_is(facts, everything),
        origin_of_files=_origin_of_files(facts),
        loading=_loading(facts),
        rows_table=_rows_table(facts),
        kept_out=_kept_out(facts),
        recipe=_recipe(everything),
        settings=_settings(facts.source),
        provenance_tables=_provenance(facts.rows),
        requests=_requests(facts),
        cost_and_dates=_cost_and_dates(facts),
        notes=_notes(facts),
        coverage=describe_coverage(facts.rows),
        labels=_labels(facts),
        columns_table=describe_columns(facts),
        licenses=describe_licenses(everything),
        terms=describe_terms(everything),
        ethics=describe_ethics(everything),
        limits=describe_limits(facts, everything),
        citation=CITATION.replace(", title=", ",\n  title=").replace(", journal=", ",\n  journal="),
    )
    return re.sub(r"\n{3,}", "\n\n", text)  # where a section has nothing to say


def _everything(facts: CardFacts) -> RowCounts:
    """The counts of all rows, those of negatives included."""
    total = RowCounts()
    total.merge(facts.rows)
    total.merge(facts.negatives)
    return total


# ------------------------------------------------------------------ files and rows


def _what_it_is(facts: CardFacts, everything: RowCounts) -> str:
    """What the pictures are, by the number of those that no model made."""
    num_photographs = everything.num_photographs
    described = "each with a description that a language model wrote"
    if num_photographs and num_photographs == everything.num_rows:
        return f"Photographs, {described}. No model made them."
    is_edit = ["text_and_image" in name for name in facts.splits] or [False]
    asked_for = [
        *(["it"] if not all(is_edit) else []),
        *(["the change to a source picture"] if any(is_edit) else []),
    ]
    made = f"Pictures made by image-generation models, each with the text that asked for {' or for '.join(asked_for)}"
    if not num_photographs:
        return f"{made}."
    return f"{made}; and {counted(num_photographs, 'photograph')} that no model made, {described}."


def _origin_of_files(facts: CardFacts) -> str:
    """Whether pictures are as they were received."""
    source = _name_of(facts.source)
    if facts.encoding is not None:
        return (
            f"**This is a light variant**: the pictures of {source} were decoded, turned upright and encoded anew "
            f"({facts.encoding}). `output_sha256` and the resolutions are those of the new files; `id` and "
            "`output_phash` are those of the full picture."
        )
    if facts.source.kind == "run":
        return "Pictures are stored byte for byte as they were received."
    return f"Pictures are byte for byte those of {source}, from which this set was packed."


def _name_of(source: SourceFacts) -> str:
    kind = {"run": "the run", "upstream_release": "the release", "data_set": "the data set"}[source.kind]
    return f"{kind} {code(source.name)}"


def _loading(facts: CardFacts) -> str:
    if not facts.splits:
        return "There is nothing to load yet."
    title = literal(facts.title)
    calls = [
        (f'load_dataset({title}, "{config}", split="{split}")', counted(counts.num_rows, "row"))
        for config, splits in facts.splits.items()
        for split, counts in splits.items()
    ]
    lines = ["from datasets import load_dataset", "", f"rows = {calls[0][0]}  # {calls[0][1]}"]
    lines += [f"# {call}  # {number}" for call, number in calls[1:]]
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
            "`reject_reason` says why. The rows that passed are not part of this set."
        )
        parts.append(_reasons(facts.rows))
    if facts.negatives.num_rows:
        names = [f"`{name}`" for name in facts.splits if name.endswith(NEGATIVES)]
        holds = "configuration {} holds" if len(names) == 1 else "configurations {} hold"
        parts.append(
            f"The {holds.format(join_words(names))} pictures that a quality gate refused, and only those; "
            "`reject_reason` says why. What is said below of models, costs and what the pictures show leaves them "
            "out; the licences are those of all rows."
        )
        parts.append(_reasons(facts.negatives))
    if not facts.rejections:
        return "\n\n".join([*parts, "Packing kept no row out."])
    kept_out = (
        f"Packing kept out {counted(facts.rejections.total(), 'row')}, each listed with its reason in "
        "`rejections.parquet`."
    )
    return "\n\n".join([*parts, kept_out, count_table("Reason", facts.rejections)])


def _reasons(rows: RowCounts) -> str:
    return count_table("Why a picture is a negative", rows.values.get("reject_reason", {}))


# ------------------------------------------------------------------ where they come from


def _recipe(everything: RowCounts) -> str:
    """How the pipelines that are present work, and what is known of the upstream release."""
    origins = everything.values.get("origin", Counter())
    parts = []
    if "synthesized" in origins:
        variants = _pipelines(everything)
        named = " The column `pipeline` names its variant:" if variants else ""
        parts += [f"The recipe is that of ShareGPT-4o-Image ({_PAPER}).{named}", variants]
    if "upstream_release" in origins:
        parts.append(
            f"Rows whose `origin` is `upstream_release` were made by the authors of ShareGPT-4o-Image ({_PAPER}, "
            f"[{UPSTREAM}](https://huggingface.co/datasets/{UPSTREAM})). Their paper says that the pictures come from "
            "the image generation of GPT-4o, and the texts from Gemini 2.5 Pro. The release itself names no model, "
            "date, category or licence for a row; such columns are null."
        )
        parts.append(
            "Before packing, every picture of the release was decoded, and its size compared where one is recorded. "
            "The release records no checksums."
        )
    if "synthesized" in origins:
        which = "other picture" if "upstream_release" in origins else "picture"
        parts.append(
            f"Before packing, every {which} was decoded, and those of `output_image` compared with the recorded size "
            "and checksum."
        )
    return "\n\n".join(part for part in parts if part)


def _pipelines(everything: RowCounts) -> str:
    counts = everything.values.get("pipeline", Counter())
    endings = {
        "image_first": _of_image_first(counts["image_first"], everything.num_photographs),
        "editing": _of_editing(counts["editing"], everything.num_photo_edits),
    }
    return bullets(*(f"`{name}`: {how}{endings.get(name, '.')}" for name, how in _PIPELINES.items() if counts[name]))


def _of_image_first(num_rows: int, num_photographs: int) -> str:
    if num_photographs >= num_rows:
        return "; the picture of the row is the photograph itself."
    itself = f" In {counted(num_photographs, 'row')} it is the photograph itself." if num_photographs else ""
    return f", and an image model draws the picture of the row from the description.{itself}"


def _of_editing(num_rows: int, num_photo_edits: int) -> str:
    if not num_photo_edits:
        return ". The source pictures were made by a model, too."
    return f". In {num_photo_edits:,} of {counted(num_rows, 'row')} a source picture is a photograph."


def _settings(source: SourceFacts) -> str:
    """What decided the rows of a run besides its models."""
    settings = source.settings
    gates = settings.get("gates", {})
    judge = gates.get("judge")
    lines = [
        ("Taxonomy", source.taxonomy),
        ("Seed", settings.get("seed")),
        ("Parameters of text requests", settings.get("prompt_params")),
        ("Parameters of picture requests", settings.get("image_params")),
        ("Parameters of edit requests", settings.get("edit_params")),
        *((meaning, gates.get(name)) for name, meaning in _GATES.items()),
        ("Model that judges every picture, from 0 to 10", judge and judge["model"]),
        ("Refuse pictures that it gives less than", judge and judge["threshold"]),
    ]
    known = [(name, _shown(value)) for name, value in lines if value is not None]
    if not settings:
        return f"Topics were drawn from the taxonomy {code(source.taxonomy)}." if source.taxonomy else ""
    without = "" if judge else "\n\nNo model judged the pictures."
    return table(("Setting of the run", "Value"), known) + without


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return _named(value)
    return ("yes" if value else "no") if isinstance(value, bool) else code(str(value))


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
    lines = limited([(*_model_and_parameters(request), count) for request, count in ranked(rows.image_params)])
    yield table(("Image model", "Parameters of the request (`image_params`)", "Rows"), lines)


def _model_and_parameters(request: str) -> tuple[str, str]:
    model, parameters = json.loads(request)
    return "null" if model is None else code(model), _named(parameters)


def _named(parameters: dict[str, Any]) -> str:
    """Parameters that were sent: `quality="high", size="1024x1024"`."""
    sent = sorted((name, value) for name, value in parameters.items() if value is not None)
    text = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sent)
    return code(text) if text else "none"


def _requests(facts: CardFacts) -> str:
    """What a run asked, and what became of it."""
    parts = [*_request_table(facts.source)]
    if facts.source.rejections:
        number = counted(sum(facts.source.rejections.values()), "sample")
        if facts.row is RejectedRecord:
            fate = "Those of which there is a picture are the rows of this set."
        elif facts.negatives.num_rows:
            fate = f"Those of which there is a picture are in the configurations that end in `{NEGATIVES}`."
        else:
            fate = "None of them is part of this set."
        parts.append(f"The run rejected {number}. {fate}")
        parts.append(count_table("Why a sample was rejected", facts.source.rejections, noun="Samples"))
    return "\n\n".join(parts)


def _request_table(source: SourceFacts) -> Iterator[str]:
    """A sentence, a table of requests by stage, model and outcome, and what the outcomes mean."""
    counts = [(stage, model, found) for stage, models in source.requests.items() for model, found in models.items()]
    total = sum((Counter(found) for _, _, found in counts), Counter[str]())
    if not total:
        return
    statuses = sorted(total, key=lambda status: ([*_STATUSES].index(status) if status in _STATUSES else 99, status))
    failed = total.total() - total["ok"]
    fate = f"{failed:,} of them got no answer of use" if failed else "all were answered"
    sent = f"sent {counted(total.total(), 'request')} to its models; {fate}."
    yield f"{_name_of(source).replace('the', 'The', 1)} {sent}"
    lines = [
        (
            f"{_STAGES.get(stage, '')} ({code(stage)})".lstrip(),
            code(model),
            *(found.get(status, 0) for status in statuses),
        )
        for stage, model, found in counts
    ]
    yield table(("What was asked for", "Model", *map(code, statuses)), lines)
    if failed:
        yield bullets(*(f"{code(status)}: {_STATUSES[status]}" for status in statuses if status in _STATUSES))


def _cost_and_dates(facts: CardFacts) -> str:
    rows, sentences = facts.rows, []
    if rows.first_created_at and rows.last_created_at:
        what = "rows" if rows.num_photographs else "pictures"
        sentences.append(
            f"The {what} were made between {prose(rows.first_created_at)} and {prose(rows.last_created_at)}."
        )
    if rows.num_photographs:
        sentences.append("When the photographs were taken is not recorded.")
    if rows.num_costs:
        each = rows.cost_usd / rows.num_costs
        sentences.append(
            f"Recorded cost: {dollars(rows.cost_usd)} US dollars over {counted(rows.num_costs, 'row')}, "
            f"{dollars(each)} a row."
        )
    if facts.source.spent_usd is not None:
        sentences.append(f"The whole run cost {_spent(facts.source)}; answers that became no row are included.")
    return " ".join(sentences) or "Neither dates nor costs were recorded."


def _spent(source: SourceFacts) -> str:
    """What a run cost: `8.25 US dollars, and at most 0.14 more that is not known`."""
    possibly = source.possibly_spent_usd
    unknown = f", and at most {dollars(possibly)} more that is not known" if possibly else ""
    return f"{dollars(source.spent_usd or 0)} US dollars{unknown}"


def _notes(facts: CardFacts) -> str:
    notes = bullets(*map(prose, facts.source.notes))
    return f"Remarks on the data as a whole:\n\n{notes}" if notes else ""


# ------------------------------------------------------------------ what they show


def _labels(facts: CardFacts) -> str:
    """Who labelled, what that took, what came out, and how far it agrees with what is known."""
    if not issubclass(facts.row, LabelledRecord):
        return ""
    models = facts.rows.values.get("label_model", Counter())
    parts = [
        "## Labels",
        "The columns `label_*` were filled in afterwards by a model that saw the prompt and the pictures, and not "
        "what was known of the row. They are the opinion of that model; what was known when a row was made stands in "
        "the columns without `label_`.",
        count_table("Labelled by (`label_model`)", models, facts.rows.num_rows),
        *_labelling(facts.source.labelling),
        _agreement(facts),
        *describe_values(facts.rows, LABEL_COLUMNS),
    ]
    return "\n\n".join(part for part in parts if part)


def _labelling(run: SourceFacts | None) -> Iterator[str]:
    """What the run that labelled the rows took."""
    if run is None:
        return
    if run.taxonomy:
        yield f"The model chose among the words of the taxonomy {code(run.taxonomy)}."
    yield from _request_table(run)
    if run.rejections:
        yield count_table("Why a row got no labels", run.rejections)
    if run.spent_usd is not None:
        yield f"Labelling cost {_spent(run)}."


def _agreement(facts: CardFacts) -> str:
    lines = [
        (code(column), compared, agreeing, f"{agreeing / compared:.1%}")
        for column, (agreeing, compared) in facts.source.agreement.items()
        if compared
    ]
    if lines:
        heading = "On rows of which both are known:"
        return f"{heading}\n\n{table(('Column', 'Rows compared', 'Rows that agree', 'Share'), lines)}"
    known = facts.rows.values
    if any(known.get(column.removeprefix("label_")) and known.get(column) for column in LABEL_COLUMNS):
        return "How far the labels agree with what was known was not measured."
    return "No row tells both a label and what was known, so how good the labels are is not known."
