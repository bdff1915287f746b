# SPDX-License-Identifier: Apache-2.0
"""The result of one benchmark, as `scores/NAME.json` keeps it: scores with intervals, and all that they depend on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import json_bytes, write_whole
from sharegpt4o_image.synthesis.journal import printable

FORMAT = 1


@dataclass(frozen=True)
class ScoreLine:
    """One number.

    Args:
        name (`str`): `overall`, or the part: `two_object`.
        value (`float`): in the benchmark's own unit.
        low (`float`, *optional*): lower end of the 95 % interval.
        high (`float`, *optional*): its upper end.
        count (`int`, *optional*): pictures, items or answers that it is the mean of.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None


@dataclass(frozen=True)
class MissingItem:
    """Something that has no score: a picture that is not there, an answer that cannot be read."""

    item: str
    reason: str


@dataclass(frozen=True)
class ScoreRecord:
    """What a benchmark gave.

    Args:
        benchmark (`str`): `geneval`, `dpg-bench`, `imgedit`, `scenes`, `scene-edits`, `scene-geneval`.
        name (`str`):
            What the numbers may be called: `geneval` only with the official detector, classifier and prompts, else a
            variant that names what differs: `geneval[detector=...]`.
        unit (`float`): the best possible value: 1, 100 or 5.
        scores (`tuple`): the overall score first.
        num_expected (`int`): pictures, items or answers that the benchmark has.
        num_scored (`int`): of these, with a score.
        missing (`tuple`): the others, each with its reason.
        model (`str`, *optional*): what drew the pictures; `None` when only a folder of them was given.
        generator (`dict`): identity and sampling recipe of what drew the pictures, seeds included.
        judge (`dict`): identity of detector, classifier, VQA model or judge.
        command (`str`, *optional*): what to run for it.
        details (`dict`): the benchmark's own numbers, as `evaluate NAME --json` prints them, without single pictures.
        created_at (`str`): UTC, ISO 8601.
    """

    benchmark: str
    name: str
    unit: float
    scores: tuple[ScoreLine, ...]
    num_expected: int
    num_scored: int
    missing: tuple[MissingItem, ...] = ()
    model: str | None = None
    generator: Mapping[str, Any] = field(default_factory=dict)
    judge: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""

    @property
    def overall(self) -> ScoreLine:
        """The first of the scores."""
        return self.scores[0]

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {"format": FORMAT, **asdict(self)}

    def to_text(self) -> str:
        """A few lines for people: never a score without how many items are missing."""
        width = max(len(line.name) for line in self.scores)
        lines = [self.name]
        lines += [f"  {line.name:{width}}  {_number_text(line, self.unit)}" for line in self.scores]
        lines.append(f"{self.num_scored:,} of {self.num_expected:,} scored, {len(self.missing):,} missing")
        lines += [f"  {printable(missing.item)}: {printable(missing.reason)}" for missing in self.missing[:5]]
        if len(self.missing) > 5:
            lines.append(f"  ... and {len(self.missing) - 5:,} more, see the file of scores")
        return "\n".join(lines)


def _number_text(line: ScoreLine, unit: float) -> str:
    decimals = 4 if unit == 1 else 2
    text = f"{line.value:.{decimals}f}"
    if line.low is not None and line.high is not None:
        text += f" (95 % interval {line.low:.{decimals}f} to {line.high:.{decimals}f})"
    return text if line.count is None else f"{text}, n = {line.count:,}"


def score_path(output_dir: Path, benchmark: str) -> Path:
    """Where the scores of a benchmark lie below the folder of its results."""
    return output_dir / "scores" / f"{benchmark}.json"


def write_scores(record: ScoreRecord, output_dir: Path) -> Path:
    """Write `OUTPUT/scores/NAME.json`, last of all; returns its path."""
    path = score_path(output_dir, record.benchmark)
    write_whole(path, json_bytes(json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False)))
    return path


def read_scores(path: Path) -> ScoreRecord:
    """Read a file of scores."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("of another version")
        data["scores"] = tuple(ScoreLine(**line) for line in data["scores"])
        data["missing"] = tuple(MissingItem(**missing) for missing in data["missing"])
        record = ScoreRecord(**data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a file that `evaluate` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a file of scores ({error}); give one that `evaluate` wrote") from error
    if not record.scores:
        raise UserError(f"{path} holds no score; give a file that `evaluate` wrote")
    return record
