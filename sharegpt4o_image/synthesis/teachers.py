# SPDX-License-Identifier: Apache-2.0
"""`teachers.yaml` -> what is known of the models, and the faults of a configuration before any money is spent."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.config import Price, SynthesisConfig
from sharegpt4o_image.synthesis.yaml_files import fault_in, read_yaml

Params = dict[str, str | int | float]
Purpose = Literal["chat", "generation", "edit"]

WARNING_DAYS = 30  # a model that dies so soon is warned of: a full run takes weeks (our choice)

_ENDPOINT_OF: dict[Purpose, str] = {"chat": "chat", "generation": "images", "edit": "images"}
_COMPRESSED_FORMATS = ("jpeg", "webp")  # the only ones that take output_compression (openai image_generate_params.py)
_TRANSPARENT_FORMATS = ("png", "webp")  # the only ones that a transparent background can have (the same file)
_DEFAULT_FORMAT = "png"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Accepted(_Part):
    """What a parameter may be: one of the words, or a number of the range. A list stands for its words."""

    words: list[str] = Field(default_factory=list)
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"words": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_something(self) -> "Accepted":
        if bool(self.words) == (self.minimum is not None or self.maximum is not None):
            raise ValueError("give a list of words, or a minimum and a maximum")
        return self

    def takes(self, value: str | float) -> bool:
        """Whether the model would accept the value."""
        if self.words or isinstance(value, str):
            return value in self.words
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        return low <= value <= high

    def describe(self) -> str:
        """The values in words."""
        if self.words:
            return ", ".join(self.words)
        bounds = (("from", self.minimum), ("to", self.maximum))
        return "numbers " + " ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


class SizeRule(_Part):
    """Which `WIDTHxHEIGHT` a model draws; the longer side may be the width or the height."""

    multiple_of: int = Field(ge=1)
    max_ratio: float = Field(ge=1)
    min_side: int = Field(ge=1)
    max_long_side: int
    max_short_side: int

    def takes(self, size: str) -> bool:
        """Whether the model would draw that size."""
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if match is None:
            return False
        short, long = sorted(map(int, match.groups()))
        return (
            short % self.multiple_of == long % self.multiple_of == 0
            and self.min_side <= short <= self.max_short_side
            and long <= min(self.max_long_side, short * self.max_ratio)
        )

    def describe(self) -> str:
        """The rule in words."""
        largest, smallest = f"{self.max_long_side}x{self.max_short_side}", f"{self.min_side}x{self.min_side}"
        shape = "square" if self.max_ratio == 1 else f"at most {self.max_ratio:g} to 1"
        step = f", both sides divisible by {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"{smallest} to {largest}, {shape}{step}"


class Teacher(_Part):
    """One model; `teachers.yaml` says what each key means."""

    id: str
    snapshots: list[str] = Field(default_factory=list)
    endpoint: Literal["chat", "images"]
    chat_params: dict[str, Accepted] = Field(default_factory=dict)
    generation_params: dict[str, Accepted] = Field(default_factory=dict)
    edit_params: dict[str, Accepted] = Field(default_factory=dict)
    size_rule: SizeRule | None = None
    price: Price | None = None
    tokens_per_image: int | None = Field(default=None, ge=1)
    shutdown_date: date | None = None
    replaced_by: list[str] = Field(default_factory=list)
    is_rerouted: bool = False
    used_in_paper: bool = False
    evidence: str

    @property
    def names(self) -> list[str]:
        """All names of the model."""
        return [self.id, *self.snapshots]

    def params_for(self, purpose: Purpose) -> dict[str, Accepted]:
        """The parameters that requests of that kind may have."""
        known = {"chat": self.chat_params, "generation": self.generation_params, "edit": self.edit_params}
        return known[purpose]

    def find_fault(self, purpose: Purpose, name: str, value: str | float) -> str | None:
        """Why the model would refuse a parameter, in words."""
        accepted = self.params_for(purpose)
        if name not in accepted:
            known = ", ".join(accepted) or "no parameters"
            return f"{self.id} is not known to accept it for this kind of request; leave it out (accepted: {known})"
        rule = self.size_rule if name == "size" else None
        if accepted[name].takes(value) or (rule is not None and rule.takes(str(value))):
            return None
        taken = accepted[name].describe() + (f", or {rule.describe()}" if rule else "")
        return f"{self.id} does not accept {value!r}; it accepts {taken}"


class Teachers(_Part):
    """The registry."""

    teachers: list[Teacher]

    @model_validator(mode="after")
    def _names_differ(self) -> "Teachers":
        seen: set[str] = set()
        for index, teacher in enumerate(self.teachers):
            for name in teacher.names:
                if name in seen:
                    raise fault_in(("teachers", index), f"the model {name!r} is listed twice; keep one of them")
                seen.add(name)
        return self

    def find(self, model: str) -> Teacher | None:
        """What is known of a model."""
        return next((teacher for teacher in self.teachers if model in teacher.names), None)

    def price_of(self, model: str, config: SynthesisConfig) -> Price | None:
        """The price that the configuration gives, or else the registry's; `None` when it is not known."""
        if model in config.prices:
            return config.prices[model]
        teacher = self.find(model)
        return teacher.price if teacher else None


def load_teachers(path: str | None) -> Teachers:
    """The package's registry; the entries of the file at `path` are added, and replace those of the same name."""
    known = read_yaml(Path(str(files("sharegpt4o_image.synthesis"))) / "teachers.yaml", Teachers)
    if path is None:
        return known
    added = read_yaml(Path(path), Teachers)
    replaced = {name for teacher in added.teachers for name in teacher.names}
    kept = [_without(teacher, replaced) for teacher in known.teachers if teacher.id not in replaced]
    return Teachers(teachers=added.teachers + kept)


def _without(teacher: Teacher, names: set[str]) -> Teacher:
    return teacher.model_copy(update={"snapshots": [name for name in teacher.snapshots if name not in names]})


# --------------------------------------------------------------------------- before a run


@dataclass(frozen=True)
class _Use:
    """What a configuration asks of one model."""

    setting: str
    model: str
    purpose: Purpose
    params_setting: str
    params: Params


def check_teachers(config: SynthesisConfig, teachers: Teachers, today: date) -> list[str]:
    """Compare a configuration with the registry; returns warnings.

    A model that is shut down or serves another endpoint, and a parameter that it would refuse, raise [`UserError`].
    """
    return list(dict.fromkeys(warning for use in _uses(config) for warning in _check_use(use, teachers, today)))


def asked_models(config: SynthesisConfig) -> list[str]:
    """The models that a run would ask, each once."""
    return list(dict.fromkeys(use.model for use in _uses(config)))


def _uses(config: SynthesisConfig) -> Iterator[_Use]:
    prompt_params: Params = {**config.prompt_params.sent()}
    yield _Use("prompt_model", config.prompt_model, "chat", "prompt_params", prompt_params)
    if config.gates.judge is not None:
        yield _Use("gates.judge.model", config.gates.judge.model, "chat", "prompt_params", prompt_params)
    num_redrawn = config.num_described if config.image_first_target == "regenerated" else 0
    if config.num_topics or config.num_documents or num_redrawn:
        yield _Use("image_model", config.image_model, "generation", "image_params", {**config.image_params.sent()})
    if config.num_edits:
        yield _Use("image_model", config.image_model, "edit", "edit_params", {**config.edit_params.sent()})


def _check_use(use: _Use, teachers: Teachers, today: date) -> Iterator[str]:
    teacher = teachers.find(use.model)
    if teacher is None:
        yield f"the registry does not know {use.model}: its parameters, price and shutdown date were not checked"
        return
    if teacher.endpoint != _ENDPOINT_OF[use.purpose]:
        needed = {"chat": "writes text", "images": "makes pictures"}
        raise UserError(
            f"{use.setting}: {use.model} {needed[teacher.endpoint]}; "
            f"name a model that {needed[_ENDPOINT_OF[use.purpose]]}"
        )
    _refuse_dead(use, teacher, today)
    _refuse_params(use, teacher)
    yield from _warnings_of(use.model, teacher, today)


def _refuse_dead(use: _Use, teacher: Teacher, today: date) -> None:
    if teacher.shutdown_date is None or teacher.shutdown_date > today:
        return
    instead = _join(teacher.replaced_by) or "another model"
    raise UserError(
        f"{use.setting}: {use.model} was shut down on {teacher.shutdown_date}; name {instead} instead, or list the "
        "model in a file that `teachers` names, if your server has it"
    )


def _refuse_params(use: _Use, teacher: Teacher) -> None:
    for name, value in use.params.items():
        fault = teacher.find_fault(use.purpose, name, value) or _find_conflict(name, use.params)
        if fault is not None:
            raise UserError(f"{use.params_setting}.{name}: {fault}")


def _find_conflict(name: str, params: Params) -> str | None:
    """Why a parameter does not go with the others."""
    output_format = str(params.get("output_format", _DEFAULT_FORMAT))
    if name == "output_compression" and output_format not in _COMPRESSED_FORMATS:
        return f"only {_join(_COMPRESSED_FORMATS)} take it, not {output_format}; leave it out or set output_format"
    if params[name] == "transparent" and output_format not in _TRANSPARENT_FORMATS:
        return f"only {_join(_TRANSPARENT_FORMATS)} can be transparent, not {output_format}; set output_format"
    return None


def _warnings_of(model: str, teacher: Teacher, today: date) -> Iterator[str]:
    if teacher.shutdown_date is None:
        return
    instead = _join(teacher.replaced_by)
    if teacher.is_rerouted:
        yield (
            f"{model}: from {teacher.shutdown_date} on {instead} answers under its name, without an error; every row "
            "says which model answered"
        )
    if (num_days := (teacher.shutdown_date - today).days) <= WARNING_DAYS:
        named = f"; the vendor names {instead} instead" if instead else ""
        yield f"{model} is shut down on {teacher.shutdown_date}, in {num_days} days{named}"


def _join(words: Iterable[str]) -> str:
    return " or ".join(words)
