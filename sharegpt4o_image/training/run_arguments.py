# SPDX-License-Identifier: Apache-2.0
"""Command line and YAML -> what to train and how, by TRL's conventions; a mistake becomes one sentence."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, get_type_hints

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import HubStrategy
from trl import TrlParser

from sharegpt4o_image.checkpoints import TINY_JANUS_PRO
from sharegpt4o_image.errors import UserError
from sharegpt4o_image.training.adapters import TARGETS, check_targets
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig

PROGRAM = "python -m sharegpt4o_image.training.sft"
USAGE = f"{PROGRAM} [--config FILE] [--FIELD VALUE]..."


@dataclass
class RunArguments:
    """What is trained, and on what; named as in TRL's `ModelConfig` where it means the same."""

    dataset: str | None = field(
        default=None, metadata={"help": "Packed and encoded data set: a folder, or owner/name on the Hub."}
    )
    model: str = field(
        default=TINY_JANUS_PRO, metadata={"help": "Checkpoint to begin with: a folder, Hub id or shipped name."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that the held-out loss is measured on. Left out, it is `validation` where the data set has "
            "that, else a share of the training rows."
        },
    )
    held_out_share: float = field(
        default=0.05,
        metadata={"help": "Share of the training rows held out where there is no other split; 0 measures nothing."},
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "The weights' own type: float32 or bfloat16 (`bf16` computes in bf16 with either)."},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention of the language model. Left out, the fastest that packs."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=32, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of the adapter, times its rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: list(TARGETS), metadata={"help": f"What gets one: {', '.join(TARGETS)}."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share is {self.held_out_share}; it is a share, at least 0 and below 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float32 or bfloat16.")
        if self.eval_split == self.train_split:
            raise ValueError(
                f"eval_split and train_split are both {self.train_split}; rows that are trained on measure nothing: "
                "name another split, or leave eval_split out."
            )
        check_targets(self.lora_target_modules)
        given = [] if self.use_peft else [name for name in _lora_fields() if getattr(self, name) != _default(name)]
        if given:
            raise ValueError(f"{given[0]} is given, but no adapter is trained; add use_peft, or leave it out.")


def _lora_fields() -> list[str]:
    return [one.name for one in dataclasses.fields(RunArguments) if one.name.startswith("lora_")]


def _default(name: str) -> Any:
    return list(TARGETS) if name == "lora_target_modules" else getattr(RunArguments, name)


class _Parser(TrlParser):
    """TRL's parser; what it would raise, print or let pass becomes a [`UserError`]."""

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """Take the values of the YAML file, each checked against the type of its field."""
        types = {name: kind for part in self.dataclass_types for name, kind in get_type_hints(part).items()}
        for name, value in values.items():
            if name not in _field_names():
                raise UserError(f"the configuration has an unknown key {name}{_near(name)}")
            try:
                values[name] = TypeAdapter(types[name]).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Input ")
                raise UserError(f"{name} is {value!r} in the configuration; it {reason}") from error
        rest: list[str] = super().set_defaults_with_config(**values)
        return rest

    def error(self, message: str) -> NoReturn:
        """One sentence instead of the usage, which is several screens long."""
        raise UserError(f"{message}; `{PROGRAM} --help` lists all fields")


def _field_names() -> list[str]:
    return [one.name for part in (RunArguments, Janus4oSFTConfig) for one in dataclasses.fields(part) if one.init]


def _near(name: str) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), _field_names(), cutoff=0.8)
    return f"; did you mean {' or '.join(near)}?" if near else f"; `{PROGRAM} --help` lists all fields"


def parse_arguments(argv: Sequence[str]) -> tuple[RunArguments, Janus4oSFTConfig]:
    """The arguments of the program; the command line goes over the YAML file named by `--config`.

    Args:
        argv: as typed: `--config FILE`, `--field value`, also with dashes in the field or `--field=value`.
    """
    parts: Any = (RunArguments, Janus4oSFTConfig)
    parser = _Parser(parts, prog=PROGRAM, usage=USAGE, allow_abbrev=False)
    parser.set_defaults(hub_strategy="end")  # else transformers uploads each checkpoint, with pickled arguments
    parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # else processes on CPUs do not find each other
    separated = [part for one in argv for part in (one.split("=", 1) if one.startswith("--config=") else [one])]
    if separated[-1:] == ["--config"]:
        raise UserError("--config names no file; give a YAML file")
    try:
        arguments, config, unknown = parser.parse_args_and_config(separated, return_remaining_strings=True)
    except yaml.YAMLError as error:
        raise UserError(f"the configuration is no valid YAML ({' '.join(str(error).split())}); mend it") from error
    except OSError as error:
        raise UserError(f"the configuration {error.filename} cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if unknown:
        option = unknown[0].split("=")[0]
        raise UserError(f"there is no option {option}{_near(option.removeprefix('--'))}")
    if arguments.dataset is None:
        raise UserError("no data set is named; give --dataset, or `dataset` in the configuration")
    _check(config)
    return arguments, config


def _check(config: Janus4oSFTConfig) -> None:
    """Refuse what a program must not do, or does itself, or cannot do here."""
    if config.hub_token or "token" in (config.model_init_kwargs or {}):
        raise UserError("a token among the arguments would be kept in files; set HF_TOKEN, or use `hf auth login`")
    if config.resume_from_checkpoint is not None:
        raise UserError("resume_from_checkpoint is not needed: the same command goes on by itself; leave it out")
    if config.save_only_model:
        raise UserError("save_only_model leaves nothing that a run can go on from; leave it out")
    if config.push_to_hub and config.hub_strategy != "end":
        raise UserError(
            f"hub_strategy is {HubStrategy(config.hub_strategy).value}, which would upload arguments and paths of "
            "this machine; leave it out: the model is uploaded at the end"
        )
    for name in config.report_to or []:
        if name not in get_available_reporting_integrations():
            raise UserError(f"report_to names {name}, which is not installed or not known; type: pip install {name}")
