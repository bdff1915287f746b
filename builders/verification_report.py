# SPDX-License-Identifier: Apache-2.0
"""What the checks of `verify` found -> a table for people, or JSON; `builders/verification.py` makes them."""

import json
from dataclasses import dataclass, field
from typing import Literal

from rich.table import Table
from rich.text import Text

MAX_EXAMPLES = 5  # kept of each kind and check; the rest is only counted
MAX_EXAMPLE_LENGTH = 300

Verdict = Literal["ok", "warning", "failure", "skipped"]

_STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "failure": "bold red", "skipped": "dim"}


@dataclass
class Check:
    """One thing that has to hold, and where it does not.

    Args:
        name (`str`): `ids`.
        demand (`str`): what has to hold, in words.
        num_checked (`int`): files, rows or pictures that were looked at.
        failures (`list`): the first faults.
        warnings (`list`): the first things that are odd, but may be meant.
        note (`str`, *optional*): what was left out, and why.
    """

    name: str
    demand: str
    num_checked: int = 0
    num_failures: int = 0
    num_warnings: int = 0
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    note: str | None = None
    _kinds: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """A check that had nothing to look at was skipped."""
        if self.num_failures:
            return "failure"
        if self.num_warnings:
            return "warning"
        return "ok" if self.num_checked else "skipped"

    def fail(self, fault: str, kind: str | None = None) -> None:
        """Count a fault; the first ones are kept, of a kind only the very first."""
        self.num_failures += 1
        if len(self.failures) < MAX_EXAMPLES and kind not in self._kinds:
            self.failures.append(_plain(fault))
            self._kinds.update([] if kind is None else [kind])

    def warn(self, oddity: str) -> None:
        """Count something that may be meant; the first ones are kept."""
        self.num_warnings += 1
        if len(self.warnings) < MAX_EXAMPLES:
            self.warnings.append(_plain(oddity))

    def to_dict(self) -> dict[str, object]:
        """The check as JSON holds it."""
        return {
            "name": self.name,
            "demand": self.demand,
            "verdict": self.verdict,
            "checked": self.num_checked,
            "failures": self.num_failures,
            "warnings": self.num_warnings,
            "examples": [*self.failures, *self.warnings],
            "note": self.note,
        }


@dataclass
class VerificationReport:
    """All checks of a data set.

    Args:
        dataset (`str`): the folder.
        num_rows (`int`): rows that the files hold.
        num_rows_read (`int`): rows whose values were checked; fewer than `num_rows` where a file cannot be read.
        num_rows_decoded (`int`): rows whose pictures were decoded; fewer where a sample was asked for.
        checks (`list`): in the order of the table.
    """

    dataset: str
    num_rows: int
    num_rows_read: int
    num_rows_decoded: int
    checks: list[Check]

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return not any(check.num_failures for check in self.checks)

    def to_json(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(
            {
                "dataset": self.dataset,
                "is_sound": self.is_sound,
                "rows": self.num_rows,
                "rows_read": self.num_rows_read,
                "rows_decoded": self.num_rows_decoded,
                "checks": [check.to_dict() for check in self.checks],
            },
            ensure_ascii=False,
        )

    def to_table(self) -> Table:
        """The report for people; the last line says how much was looked at."""
        table = Table(title=Text(self.dataset), caption=self._summary(), caption_justify="left")
        table.add_column("Check", no_wrap=True)
        table.add_column("Verdict", no_wrap=True)
        table.add_column("Checked", justify="right", no_wrap=True)
        table.add_column("What has to hold, and what was found", ratio=1, overflow="fold")
        for check in self.checks:
            verdict = Text(check.verdict, style=_STYLES[check.verdict])
            table.add_row(check.name, verdict, f"{check.num_checked:,}", Text("\n".join(_lines(check))))
        return table

    def _summary(self) -> Text:
        share = self.num_rows_decoded / self.num_rows if self.num_rows else 0.0
        found = "nothing is wrong" if self.is_sound else "something is wrong"
        return Text(
            f"{found}; {self.num_rows:,} rows, values of {self.num_rows_read:,} checked, "
            f"pictures of {self.num_rows_decoded:,} ({share:.1%}) decoded"
        )


def _lines(check: Check) -> list[str]:
    lines = [check.demand]
    for label, count, examples in (
        ("failure", check.num_failures, check.failures),
        ("warning", check.num_warnings, check.warnings),
    ):
        lines += [f"{label}: {example}" for example in examples]
        if count > len(examples):
            lines.append(f"{label}: and {count - len(examples):,} more")
    return lines if check.note is None else [*lines, f"note: {check.note}"]


def _plain(text: str) -> str:
    """Short, on one line, and without what a terminal would act on: the text may come from anywhere."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    printable = "".join(letter if letter.isprintable() else "?" for letter in line)
    return printable if len(printable) <= MAX_EXAMPLE_LENGTH else printable[: MAX_EXAMPLE_LENGTH - 3] + "..."
