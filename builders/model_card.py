# SPDX-License-Identifier: Apache-2.0
"""What training and evaluation measured -> README.md of a checkpoint, from the template `model_card.md`.

What was not measured is said to be so; no number comes from anywhere else.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from sharegpt4o_image.builders.card_metadata import license_fields
from sharegpt4o_image.builders.card_text import code, join_words, literal, prose, table

TEMPLATE = Path(__file__).with_name("model_card.md")
NOT_EVALUATED = "It was not evaluated."
SCORE_COLUMNS = ("Benchmark", "Score", "95 % interval", "Pictures", "Command")


@dataclass(frozen=True)
class Training:
    """How a checkpoint was trained.

    Args:
        commands (`tuple`): what to run for it, line by line.
        recipe (`dict`): name -> value of everything that was set.
        num_steps (`int`, *optional*): updates of the weights.
        final_loss (`float`, *optional*): as it was logged last.
        hardware (`str`, *optional*): what it ran on.
        minutes (`float`, *optional*): how long it took.
        loss_plot (`str`, *optional*): picture of the loss, as a path beside the README.
        notes (`tuple`): sentences.
    """

    commands: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    final_loss: float | None = None
    hardware: str | None = None
    minutes: float | None = None
    loss_plot: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A line of the evaluation.

    Args:
        benchmark (`str`): what was measured, the part of it included: `GenEval, two objects`.
        score (`float`): the result, in the benchmark's own unit.
        interval (`tuple`, *optional*): lower and upper end of its 95 % interval.
        num_samples (`int`, *optional*): pictures that it is the mean of.
        command (`str`, *optional*): what to run for it.
    """

    benchmark: str
    score: float
    interval: tuple[float, float] | None = None
    num_samples: int | None = None
    command: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The score at several values of an option, on other samples than those of the evaluation.

    Args:
        option (`str`): what was varied: `guidance_scale`.
        measured (`str`): what the score is: `share of right edits`.
        points (`tuple`): pairs of value and score.
    """

    option: str
    measured: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ModelCardFacts:
    """All that a model card is rendered from.

    Args:
        name (`str`): of the checkpoint.
        summary (`str`): a sentence or two on what it is; Markdown of ours.
        path (`str`, *optional*): folder or repository to load it from, `name` by default.
        base_model (`str`, *optional*): checkpoint that training began with.
        datasets (`tuple`): repositories of the data that it was trained on.
        license (`str`, *optional*): terms of the weights.
        can_edit (`bool`, *optional*, defaults to `True`): whether it was trained on edits.
        sampling (`dict`): option -> default that the checkpoint carries.
        training (`Training`, *optional*): how it was trained.
        scores (`tuple`): what was measured.
        scores_note (`str`, *optional*): how it was measured: items, judge, sampling; Markdown of ours.
        sweeps (`tuple`): how options were chosen.
        limits (`tuple`): sentences on what it cannot do.
        adapter_base (`str`, *optional*): of a LoRA adapter, the checkpoint that it is put on.
    """

    name: str
    summary: str
    path: str | None = None
    base_model: str | None = None
    datasets: tuple[str, ...] = ()
    license: str | None = None
    can_edit: bool = True
    library_name: str = "transformers"
    pipeline_tag: str = "any-to-any"
    tags: tuple[str, ...] = ("janus", "text-to-image")
    sampling: Mapping[str, float] = field(default_factory=dict)
    training: Training | None = None
    scores: tuple[Score, ...] = ()
    scores_note: str | None = None
    sweeps: tuple[Sweep, ...] = ()
    limits: tuple[str, ...] = ()
    adapter_base: str | None = None


def render_model_card(facts: ModelCardFacts) -> str:
    """The README of a checkpoint: YAML for the Hub, then the text for people."""
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata=_metadata(facts),
        name=prose(facts.name),
        summary=facts.summary,
        loading=_loading(facts),
        usage=_usage(facts),
        sampling=_sampling(facts),
        training=_training(facts),
        evaluation=_evaluation(facts),
        limits=_limits(facts),
        license=_license(facts),
        terms=_terms(facts),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _metadata(facts: ModelCardFacts) -> str:
    card = ModelCardData(
        language=["en"],
        library_name=facts.library_name,
        pipeline_tag=facts.pipeline_tag,
        base_model=facts.base_model,
        datasets=[*facts.datasets] or None,
        tags=[*facts.tags, *(["image-editing"] if facts.can_edit else [])],
    )
    for name, value in license_fields(facts.license).items():
        card[name] = value
    return metadata_text(card.to_dict())


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """The YAML between the lines of dashes at the top."""
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).rstrip()


def _loading(facts: ModelCardFacts) -> str:
    path = literal(facts.path or facts.name)
    if facts.adapter_base is None:
        return (
            f"from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained({path}, trust_remote_code=True)"
        )
    return (
        "from peft import PeftModel\nfrom transformers import AutoModel, AutoProcessor\n\n"
        f"base = AutoModel.from_pretrained({literal(facts.adapter_base)}, trust_remote_code=True)\n"
        f"model = PeftModel.from_pretrained(base, {path})\n"
        f"processor = AutoProcessor.from_pretrained({path}, trust_remote_code=True)"
    )


def _usage(facts: ModelCardFacts) -> str:
    own = "" if facts.adapter_base is None else ", processor=processor"
    lines = [f'[picture] = model.generate_image("a red circle on a gray background"{own})']
    if facts.can_edit:
        lines.append(f'[edited] = model.generate_image("make the red circle blue", image=picture{own})')
    return "\n".join(lines)


def _sampling(facts: ModelCardFacts) -> str:
    if not facts.sampling:
        return ""
    defaults = ", ".join(f"{code(name)} {value:g}" for name, value in facts.sampling.items())
    return f"Defaults of the checkpoint: {defaults}."


# ------------------------------------------------------------------ training


def _training(facts: ModelCardFacts) -> str:
    base = f"Training began with {code(facts.base_model)}." if facts.base_model else ""
    data = f"Trained on {', '.join(map(code, facts.datasets))}." if facts.datasets else ""
    if facts.training is None:
        return _paragraphs(base, data, "How it was trained was not recorded.")
    training = facts.training
    commands = "\n".join(f"    {' '.join(command.split())}" for command in training.commands)
    figures = _training_figures(training)
    plot = f"![Training loss]({training.loss_plot})" if training.loss_plot else ""
    return _paragraphs(base, data, commands, *map(prose, training.notes), figures, plot)


def _training_figures(training: Training) -> str:
    """The table of the recipe and of what came of it."""
    measured = {
        "steps": training.num_steps,
        "last training loss": training.final_loss,
        "hardware": training.hardware,
        "minutes": training.minutes,
    }
    lines = [(code(name), code(_text(value))) for name, value in training.recipe.items()]
    lines += [(name, "not recorded" if value is None else code(_text(value))) for name, value in measured.items()]
    return table(("Training", "Value"), lines)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ------------------------------------------------------------------ evaluation


def _evaluation(facts: ModelCardFacts) -> str:
    return _paragraphs(render_scores(facts.scores, facts.scores_note), *map(_sweep, facts.sweeps))


def render_scores(scores: Sequence[Score], note: str | None) -> str:
    """What was measured, as the evaluation begins with it."""
    if not scores:
        return NOT_EVALUATED
    lines = [
        (prose(score.benchmark), f"{score.score:.3f}", _interval(score), _samples(score), _command(score))
        for score in scores
    ]
    return _paragraphs(note or "", table(SCORE_COLUMNS, lines))


def _interval(score: Score) -> str:
    return "not measured" if score.interval is None else f"{score.interval[0]:.3f} to {score.interval[1]:.3f}"


def _samples(score: Score) -> str:
    return "not recorded" if score.num_samples is None else f"{score.num_samples:,}"


def _command(score: Score) -> str:
    return "not recorded" if score.command is None else code(score.command)


def _sweep(sweep: Sweep) -> str:
    """A row of values that were tried, and the scores that they gave."""
    header = (code(sweep.option), *(f"{value:g}" for value, _ in sweep.points))
    return table(header, [(prose(sweep.measured), *(f"{score:.3f}" for _, score in sweep.points))])


# ------------------------------------------------------------------ limits and terms


def _limits(facts: ModelCardFacts) -> str:
    general = [
        "A picture need not show what its prompt asks for.",
        *(["An edit may change what it was not asked to change."] if facts.can_edit else []),
    ]
    return "\n".join(f"- {sentence}" for sentence in [*map(prose, facts.limits), *general])


def _license(facts: ModelCardFacts) -> str:
    if facts.license is None:
        return (
            "No licence is stated. Whoever publishes the weights has to choose one that the terms of what they were "
            "made from allow."
        )
    return f"The weights are under {code(facts.license)}."


def _terms(facts: ModelCardFacts) -> str:
    """What applies besides the licence, by what the weights were made from."""
    base = f"The terms of {code(facts.base_model)} apply besides." if facts.base_model else ""
    data = (
        f"The terms of {join_words([*map(code, facts.datasets)])} apply besides, and those of the services that made "
        "the data. Several services forbid using their output to develop competing models; the card of a data set "
        "names its services."
    )
    unknown = "" if facts.training else "What it was trained on is not recorded here, and may have terms of its own."
    return _paragraphs(base, data if facts.datasets else "", "" if base or facts.datasets else unknown)


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)
