# SPDX-License-Identifier: Apache-2.0
"""Score records -> the evaluation in the README of a checkpoint that `train` or a release of ours wrote.

Only what was measured enters: the scores there before go, all other text stays as it is.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData

from sharegpt4o_image.builders.card_text import code
from sharegpt4o_image.builders.model_card import (
    NOT_EVALUATED,
    SCORE_COLUMNS,
    TEMPLATE,
    Score,
    metadata_text,
    render_scores,
)
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import write_whole
from sharegpt4o_image.evaluation.eval_results import model_index_of, one_model
from sharegpt4o_image.evaluation.pretrained import weights_digest
from sharegpt4o_image.evaluation.report_page import escape_markdown
from sharegpt4o_image.evaluation.score_files import (
    ScoreFile,
    date_of,
    drawn_by,
    is_variant,
    judged_by,
    num_missing,
    shown_command,
)
from sharegpt4o_image.evaluation.score_record import ScoreRecord

_CARD = re.compile(r"\A---\n(?P<metadata>.*?\n)---\n\n# (?P<title>[^\n]*)\n(?P<body>.*)\Z", re.DOTALL)
_EVALUATION = re.compile(r"(?<=\n## Evaluation\n\n).*?(?=\n\n## Limits\n)", re.DOTALL)
_HEADER = re.escape("| " + " | ".join(SCORE_COLUMNS) + " |\n")
_SCORES = re.compile(rf"\A(?:{re.escape(NOT_EVALUATED)}|(?:[\s\S]*?\n\n)?{_HEADER}(?P<lines>(?:\|.*(?:\n|\Z))*))")


@dataclass(frozen=True)
class FilledCard:
    """What was written.

    Args:
        path (`Path`): the README.
        num_scores (`int`): lines of the evaluation now.
        num_replaced (`int`): lines that were there before.
    """

    path: Path
    num_scores: int
    num_replaced: int


def scores_of(records: Sequence[ScoreRecord]) -> tuple[Score, ...]:
    """The lines of a card's evaluation: every score of every record, under the record's own name."""
    return tuple(
        Score(
            f"{record.name}, {line.name}",
            line.value,
            None if line.low is None or line.high is None else (line.low, line.high),
            line.count,
            shown_command(record),
        )
        for record in records
        for line in record.scores
    )


def scores_note_of(records: Sequence[ScoreRecord]) -> str:
    """How each record was measured, what is missing included; Markdown."""
    return "\n".join(f"- {code(record.name)}: {escape_markdown(_note(record))}" for record in records)


def _note(record: ScoreRecord) -> str:
    parts = [
        f"{record.num_scored:,} of {record.num_expected:,} items scored, {num_missing(record):,} missing",
        f"best possible {record.unit:g}",
        f"judged by {judged_by(record)}",
        f"pictures drawn by {drawn_by(record)}",
        f"measured on {date_of(record)}",
        f"a variant: not comparable with published {record.benchmark}" if is_variant(record) else "",
    ]
    return "; ".join(filter(None, parts)) + "."


def fill_card(files: Sequence[ScoreFile], checkpoint: Path, called: str | None = None) -> FilledCard:
    """Put the scores into `CHECKPOINT/README.md`: the table, how it was measured, and `model-index`.

    Args:
        files: what was measured of this checkpoint; names once.
        checkpoint: its folder.
        called: how the scores name the checkpoint, if not by its folder, title or repository.
    """
    path = checkpoint / "README.md"
    records = one_model(files)
    text = _read(path)
    card = _CARD.match(text)
    evaluation = _EVALUATION.search(text)
    if card is None or evaluation is None or not _is_ours(text):
        raise UserError(f"{path} was not written by sharegpt4o-image, or changed since; put the scores there by hand")
    old = _SCORES.match(evaluation[0])
    if old is None:
        raise UserError(f"the evaluation in {path} was changed by hand; put the scores there by hand, too")
    _check_model(records[0], checkpoint, card["title"], called)
    new = render_scores(scores_of(records), scores_note_of(records))
    rest = evaluation[0][old.end() :].strip("\n")
    filled = _EVALUATION.sub(lambda _: "\n\n".join(filter(None, (new, rest))), card["body"], count=1)
    metadata = _metadata(path, card, records)
    write_whole(path, f"---\n{metadata}\n---\n\n# {card['title']}\n{filled}".encode())
    num_old = max(0, len((old["lines"] or "").splitlines()) - 1)  # less the line of dashes
    return FilledCard(path, len(scores_of(records)), num_old)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the folder of a checkpoint with --checkpoint"
        ) from error


def _is_ours(text: str) -> bool:
    """Whether it has the template's headings, in order and once each, and its paragraph on ethics."""
    template = TEMPLATE.read_text(encoding="utf-8")
    ethics = re.search(r"## Ethics\n.*?\n\n(?=##)", template, re.DOTALL)
    headings = re.findall(r"^## .*$", template, re.MULTILINE)
    return ethics is not None and ethics[0] in text and re.findall(r"^## .*$", text, re.MULTILINE) == headings


def _check_model(record: ScoreRecord, checkpoint: Path, title: str, called: str | None) -> None:
    """Refuse the scores of another model, or of other weights in the same folder."""
    if record.model is None:
        return
    revision, digest = record.generator.get("revision"), weights_digest(checkpoint)
    if called is None and digest and isinstance(revision, str) and len(revision) == len(digest):
        if revision == digest:
            return
        raise UserError(
            f"the scores are of other weights ({revision}) than those in {checkpoint} ({digest}); measure these, or "
            f"say with --model {record.model} that they are the same"
        )
    folder = checkpoint.resolve()
    names = {folder.name, html.unescape(title)} if called is None else {called}
    is_it = record.model in names or Path(record.model).name in names or Path(record.model).resolve() == folder
    if not is_it:
        raise UserError(
            f"the scores are of {record.model}, the checkpoint is {checkpoint}; if they are the same, "
            f"say so with --model {record.model}"
        )


def _metadata(path: Path, card: re.Match[str], records: Sequence[ScoreRecord]) -> str:
    try:
        metadata = yaml.safe_load(card["metadata"])
        index = ModelCardData(
            model_name=html.unescape(card["title"]), eval_results=[*model_index_of(records)]
        ).to_dict()
        return metadata_text({**metadata, "model-index": index["model-index"]})
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"the head of {path} is no YAML ({error}); put it right first") from error
