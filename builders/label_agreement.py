# SPDX-License-Identifier: Apache-2.0
"""Labels beside what was known when the rows were made -> how far they agree, column by column.

A row is compared in a column where the truth is known and is a word of the vocabulary that the labels are taken from;
a truth outside of it no label could meet, and it is only counted. Objects are compared by the names that the taxonomy
has for them; what else the model sees in a picture is neither right nor wrong.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sharegpt4o_image.schema import Record
from sharegpt4o_image.synthesis.labelling import NONE, Labels, Vocabulary


@dataclass
class WordAgreement:
    """How far one column of words agrees.

    Args:
        pairs (`Counter`): truth and label -> rows; the label is `none` where the model found that no word fits.
        num_outside (`int`): rows whose truth is no word of the vocabulary.
    """

    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    num_outside: int = 0

    @property
    def compared(self) -> int:
        """Rows that are compared."""
        return self.pairs.total()

    @property
    def agree(self) -> int:
        """Rows whose label is the truth."""
        return sum(count for (truth, label), count in self.pairs.items() if truth == label)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance; undefined where one word is the truth of all rows."""
        truths, labels = Counter[str](), Counter[str]()
        for (truth, label), count in self.pairs.items():
            truths[truth] += count
            labels[label] += count
        if len(truths) < 2:
            return None
        by_chance = sum(count * labels[word] for word, count in truths.items()) / self.compared**2
        return (self.agree / self.compared - by_chance) / (1 - by_chance)

    def to_dict(self) -> dict[str, Any]:
        """The numbers."""
        return {"agree": self.agree, "compared": self.compared, "kappa": self.kappa, "outside": self.num_outside}

    def to_text(self) -> str:
        """The numbers in words."""
        kappa = "" if self.kappa is None else f", kappa {self.kappa:.2f}"
        return _share(self.agree, self.compared) + kappa + _outside(self.num_outside)


@dataclass
class ObjectAgreement:
    """How far the sets of objects agree; means are over rows, and a row without labels has precision 0."""

    compared: int = 0
    agree: int = 0
    num_outside: int = 0
    jaccard_sum: float = 0.0
    precision_sum: float = 0.0
    recall_sum: float = 0.0

    def add(self, truth: set[str], labels: set[str]) -> None:
        """Compare one row; `truth` is not empty."""
        shared = len(truth & labels)
        self.compared += 1
        self.agree += truth == labels
        self.jaccard_sum += shared / len(truth | labels)
        self.precision_sum += shared / len(labels) if labels else 0.0
        self.recall_sum += shared / len(truth)

    def to_dict(self) -> dict[str, Any]:
        """The numbers."""
        sums = {"jaccard": self.jaccard_sum, "precision": self.precision_sum, "recall": self.recall_sum}
        means = {name: total / self.compared if self.compared else None for name, total in sums.items()}
        return {"agree": self.agree, "compared": self.compared, **means, "outside": self.num_outside}

    def to_text(self) -> str:
        """The numbers in words."""
        means = [f"{name} {self.to_dict()[name]:.2f}" for name in ("jaccard", "precision", "recall") if self.compared]
        return ", ".join([_share(self.agree, self.compared), *means]) + _outside(self.num_outside)


def _share(agree: int, compared: int) -> str:
    share = f" ({100 * agree / compared:.1f} %)" if compared else ""
    return f"{agree:,} of {compared:,} rows agree{share}"


def _outside(count: int) -> str:
    return f"; {count:,} more have a truth that the taxonomy lacks" if count else ""


class Agreement:
    """Takes rows with their labels, one by one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._known = {name: {word.casefold(): word for word in words} for name, words in vocabulary.words.items()}
        self.objects = ObjectAgreement()
        self.words = {name: WordAgreement() for name in vocabulary.words}

    def add(self, record: Record, labels: Labels) -> None:
        """Compare a row with its labels, where its truth is known."""
        if record.objects and "objects" in labels.values:
            self._add_objects(record.objects, labels.values["objects"] or ())
        for name, column in self.words.items():
            truth = getattr(record, name)
            if truth is not None and name in labels.values:
                self._add_word(column, self._known[name].get(truth.casefold()), labels.values[name])

    def _add_objects(self, truth: Iterable[str], labels: Iterable[str]) -> None:
        if known := self._known_objects(truth):
            self.objects.add(known, self._known_objects(labels))
        else:
            self.objects.num_outside += 1

    def _known_objects(self, names: Iterable[str]) -> set[str]:
        return {found for name in names if (found := self._vocabulary.find_object(name)) is not None}

    def _add_word(self, column: WordAgreement, truth: str | None, label: str | None) -> None:
        if truth is None:
            column.num_outside += 1
        else:
            column.pairs[truth, label or NONE] += 1

    @property
    def columns(self) -> dict[str, WordAgreement | ObjectAgreement]:
        """The columns that were compared, or had a truth outside of the vocabulary."""
        named: dict[str, WordAgreement | ObjectAgreement] = {"objects": self.objects, **self.words}
        return {name: column for name, column in named.items() if column.compared or column.num_outside}

    def for_card(self) -> dict[str, list[int]]:
        """Column -> `[rows that agree, rows compared]`."""
        return {name: [column.agree, column.compared] for name, column in self.columns.items() if column.compared}
