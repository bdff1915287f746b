# SPDX-License-Identifier: Apache-2.0
"""Configuration + environment -> what would stop a run, or go wrong on its way, before anything is paid.

Nothing is written, and the only requests are `GET /v1/models/{model}`, which cost nothing.
"""

import asyncio
import email.utils
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx2
import openai

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.synthesis.client import (
    KEY_VARIABLE,
    PROMPT_KEY_VARIABLE,
    Clients,
    can_be_sent,
    open_clients,
    secret_key,
)
from sharegpt4o_image.synthesis.config import SynthesisConfig
from sharegpt4o_image.synthesis.pipelines import check_inputs
from sharegpt4o_image.synthesis.planning import plan_run
from sharegpt4o_image.synthesis.run_folder import check_run_dir, is_held
from sharegpt4o_image.synthesis.taxonomy import load_taxonomy
from sharegpt4o_image.synthesis.teachers import WARNING_DAYS, Teachers, asked_models, check_teachers, load_teachers

Verdict = Literal["ok", "warning", "failure"]

MAX_CLOCK_SECONDS = 300.0  # certificates and the times in the journal bear no more (our choice)

_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    message: str


def to_text(checks: Sequence[Check]) -> str:
    """A line for each check."""
    width = max(len(check.name) for check in checks)
    return "\n".join(f"{check.verdict:<7}  {check.name:<{width}}  {check.message}" for check in checks)


def to_json(checks: Sequence[Check]) -> str:
    """A list of objects."""
    return json.dumps([asdict(check) for check in checks], indent=2)


async def examine(config: SynthesisConfig, run_dir: Path | None, today: date) -> list[Check]:
    """Look at everything that a run needs.

    Args:
        config ([`SynthesisConfig`]): what is to be made.
        run_dir (`Path`, *optional*): where; without it, disk and directory are not looked at.
        today (`date`): what shutdown dates are compared with.
    """
    teachers, checks = _check_config(config, today)
    keys = list(_check_keys(config))
    checks += keys
    if not any(check.verdict == "failure" for check in keys):
        async with open_clients(config) as clients:
            found = await asyncio.gather(*(_check_model(end, teachers, today) for end in _ends_of(config, clients)))
        checks += [check for group in found for check in group]
    if run_dir is not None:
        checks.append(_check_run_dir(run_dir))
        checks.append(_check_disk(config, teachers, run_dir))
    return list(dict.fromkeys(checks))  # two models of one endpoint have one clock


def _check_config(config: SynthesisConfig, today: date) -> tuple[Teachers, list[Check]]:
    """The registry to go on with, and what it says of the configuration."""
    name, teachers = "configuration", load_teachers(None)
    try:
        load_taxonomy(config.taxonomy)
        teachers = load_teachers(config.teachers)
        warnings = check_teachers(config, teachers, today)
        check_inputs(config)
    except UserError as fault:
        return teachers, [Check(name, "failure", str(fault))]
    if warnings:
        return teachers, [Check(name, "warning", warning) for warning in warnings]
    return teachers, [Check(name, "ok", "the registry of models has no objection")]


# --------------------------------------------------------------------------- keys


def _check_keys(config: SynthesisConfig) -> Iterator[Check]:
    variables = [KEY_VARIABLE] if config.base_url else []
    variables += [PROMPT_KEY_VARIABLE] if config.prompt_base_url else []
    for variable in variables:
        key = secret_key(variable)
        if key is None:
            yield Check("key", "warning", f"{variable} is not set; only servers without accounts do without")
        elif can_be_sent(key):
            yield Check("key", "ok", f"{variable} is set")
        else:
            yield Check("key", "failure", f"{variable} holds spaces or characters that no key has; set it again")


# --------------------------------------------------------------------------- models


@dataclass(frozen=True)
class _End:
    """A model and where it is asked."""

    model: str
    client: openai.AsyncOpenAI
    url: str | None
    key_variable: str

    @property
    def name(self) -> str:
        """What the check goes by."""
        return f"model {self.model}"

    @property
    def place(self) -> str:
        """The endpoint in words."""
        return self.url or "the offline teacher"


def _ends_of(config: SynthesisConfig, clients: Clients) -> Iterator[_End]:
    for model in asked_models(config):
        if model == config.image_model or config.prompt_base_url is None:
            yield _End(model, clients.images, config.base_url, KEY_VARIABLE)
        else:
            yield _End(model, clients.prompts, config.prompt_base_url, PROMPT_KEY_VARIABLE)


async def _check_model(end: _End, teachers: Teachers, today: date) -> list[Check]:
    options: openai.RequestOptions = {"timeout": _TIMEOUT_SECONDS}
    path = f"/models/{quote(end.model, safe='')}"
    try:
        response = await end.client.get(path, cast_to=httpx2.Response, options=options)
    except openai.APIStatusError as error:
        return [_judge_refusal(end, error), *_check_clock(end, error.response)]
    except openai.APIConnectionError as error:
        reason = str(error.__cause__ or error).rstrip(".") or type(error).__name__
        message = f"cannot reach {end.place} ({reason}); check its address and the network"
        return [Check(end.name, "failure", message)]
    return [_judge_card(end, response.content, teachers, today), *_check_clock(end, response)]


def _judge_refusal(end: _End, error: openai.APIStatusError) -> Check:
    if error.status_code in (401, 403):
        message = f"{end.place} does not accept the key; set {end.key_variable} to one that may use the model"
        return Check(end.name, "failure", message)
    if error.code == "model_not_found":
        message = f"{end.place} has no such model; name one that it lists under /v1/models"
        return Check(end.name, "failure", message)
    if error.status_code in (404, 405):
        message = f"{end.place} has no route that says whether it has the model"
        return Check(end.name, "warning", message)
    message = f"{end.place} answers {error.status_code} to a question about the model; try again later"
    return Check(end.name, "failure", message)


def _judge_card(end: _End, content: bytes, teachers: Teachers, today: date) -> Check:
    """Read what the endpoint says about the model."""
    try:
        card: Any = json.loads(content)
    except ValueError:
        message = f"{end.place} does not speak OpenAI's API (its answer is not JSON); the base URL usually ends in /v1"
        return Check(end.name, "failure", message)
    said = card.get("shutdown_date") if isinstance(card, dict) else None
    try:
        shutdown = date.fromisoformat(said) if said is not None else None
    except (TypeError, ValueError):
        return Check(end.name, "warning", f"{end.place} names a shutdown date that is none: {str(said)[:40]!r}")
    return _judge_shutdown(end, shutdown, teachers, today)


def _judge_shutdown(end: _End, shutdown: date | None, teachers: Teachers, today: date) -> Check:
    teacher = teachers.find(end.model)
    registered = teacher.shutdown_date if teacher else None
    if shutdown is not None and shutdown <= today:
        return Check(end.name, "failure", f"{end.place} says that it was shut down on {shutdown}; name another model")
    if shutdown is not None and (num_days := (shutdown - today).days) <= WARNING_DAYS:
        return Check(end.name, "warning", f"{end.place} says that it is shut down on {shutdown}, in {num_days} days")
    if shutdown != registered:
        message = f"shut down on {shutdown or 'no known day'} according to {end.place}, on "
        return Check(end.name, "warning", f"{message}{registered or 'no known day'} according to the registry")
    return Check(end.name, "ok", f"{end.place} has it" + (f", until {shutdown}" if shutdown else ""))


def _check_clock(end: _End, response: httpx2.Response) -> Iterator[Check]:
    """Compare this machine's clock with the endpoint's, where an answer has a date."""
    try:
        there = email.utils.parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return
    seconds = (datetime.now(UTC) - there.astimezone(UTC)).total_seconds()
    if abs(seconds) > MAX_CLOCK_SECONDS:
        word = "ahead of" if seconds > 0 else "behind"
        message = f"this machine is {abs(seconds) / 60:,.0f} minutes {word} {end.place}; set its clock"
        yield Check("clock", "warning", message)
    else:
        yield Check("clock", "ok", f"within {MAX_CLOCK_SECONDS / 60:.0f} minutes of {end.place}")


# --------------------------------------------------------------------------- disk


def _check_run_dir(run_dir: Path) -> Check:
    name = "run directory"
    try:
        check_run_dir(run_dir)
    except (UserError, OSError) as fault:
        return Check(name, "failure", str(fault))
    parent = _existing(run_dir)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return Check(name, "failure", f"cannot write to {parent}; choose another directory")
    if is_held(run_dir):
        return Check(name, "failure", f"another process is working on {run_dir}; wait for it to end or stop it")
    return Check(name, "ok", f"{run_dir} can be written")


def _check_disk(config: SynthesisConfig, teachers: Teachers, run_dir: Path) -> Check:
    try:
        needed = plan_run(config, teachers, run_dir).disk_bytes
    except UserError as fault:
        return Check("disk", "failure", f"the plan cannot be made: {fault}")
    free = shutil.disk_usage(_existing(run_dir)).free
    said = f"{free / 1e9:,.1f} GB are free, the pictures to come need about {needed / 1e9:,.1f}"
    if needed > free:
        return Check("disk", "failure", f"{said}; choose another disk or make fewer samples")
    if 2 * needed > free:
        return Check("disk", "warning", f"{said}, and the packed data set as much again")
    return Check("disk", "ok", said)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())
