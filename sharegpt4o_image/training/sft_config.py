# SPDX-License-Identifier: Apache-2.0
"""Configuration of [`Janus4oSFTTrainer`]: TRL's, with the recipe of Janus-4o as named fields and two presets."""

from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from transformers.trainer_pt_utils import AcceleratorConfig

# What each preset sets where a field is left open. Sources: paper section 2 and 3, `train_janus.py` at 19ac7d7 (line
# numbers), Janus-Pro's report for the crop. "Ours" marks what was not published and is our own choice.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "prompt_dropout": 0.1,  # paper section 2, line 172: the prompt of a text-to-image sample
        "prompt_dropout_granularity": "block",  # line 174: all of it, role tags too (T6)
        "source_code_dropout": 0.5,  # paper section 2, line 324
        "source_code_dropout_granularity": "block",  # lines 324-331: all codes of a source (T5)
        "instruction_dropout": 0.0,  # line 172: edits keep their instruction
        "null_dropout": 0.0,  # line 172: the unconditional row of an edit is never trained (T4)
        "decay_norms_and_embeddings": True,  # line 260: the names never match (T8)
        "geometry": "pad",  # lines 125, 130, 139: grey bars (T3)
    },
    "default": {
        "prompt_dropout": 0.1,
        "prompt_dropout_granularity": "block",
        "source_code_dropout": 0.5,
        "source_code_dropout_granularity": "block",
        "instruction_dropout": 0.05,  # ours
        "null_dropout": 0.1,  # ours: the rate of text to image
        "decay_norms_and_embeddings": False,
        "geometry": "center_crop",  # Janus-Pro: short side 384, then a crop
    },
}
MIN_LR_SHARE = 0.15  # train_janus.py: the learning rate ends at this share of its peak
GRANULARITIES = ("block", "token")
LAYOUTS = ("packed", "padded")
_SHARES = ("prompt_dropout", "source_code_dropout", "instruction_dropout", "null_dropout", "edit_share")
_FOR_TEXT = "it is for text, which is not trained here"
_ORDER = "batches come as the seed orders them, the last one with what is left"
# Arguments of TRL and transformers that would act in vain or wrongly here: the value that is left, and why.
_FIXED: dict[str, tuple[Any, str]] = {
    "label_smoothing_factor": (0.0, "the loss is the cross entropy of the codes alone"),
    "loss_type": ("nll", "the loss is the cross entropy of the codes alone"),
    "completion_only_loss": (None, "the loss is on the codes of the target alone, always"),
    "assistant_only_loss": (False, "the loss is on the codes of the target alone, always"),
    "max_length": (None, "a cut row loses its image codes"),
    "packing": (False, "it is TRL's, for text; row_layout='packed' packs image samples"),
    "padding_free": (False, "it is TRL's, for text; row_layout='packed' packs image samples"),
    "eval_packing": (None, "held-out rows are padded, so that two evaluations measure the same"),
    "packing_strategy": ("bfd", "it is TRL's, for text; row_layout='packed' packs image samples"),
    "pad_to_multiple_of": (None, "rows are packed, or padded to the longest"),
    "truncation_mode": ("keep_start", "rows are never cut"),
    "dataset_kwargs": ({"skip_prepare_dataset": True}, "TRL's preparation is for text"),
    "dataset_text_field": ("text", _FOR_TEXT),
    "dataset_num_proc": (None, "rows are read as they are"),
    "chat_template_path": (None, _FOR_TEXT),
    "eos_token": (None, _FOR_TEXT),
    "pad_token": (None, _FOR_TEXT),
    "trust_remote_code": (False, "the model's code is this package's"),
    "use_liger_kernel": (False, "it has no kernels for this model; torch_compile fuses its layers"),
    "shuffle_dataset": (False, "every epoch is shuffled anew; `seed` or `data_seed` says how"),
    "train_sampling_strategy": ("random", "packed batches need no like lengths, max_tokens_per_batch pads least"),
    "length_column_name": ("length", "lengths are counted from the prompts"),
    "dataloader_drop_last": (False, _ORDER),
    "dataloader_in_order": (True, _ORDER),
    "remove_unused_columns": (False, "the collator reads the columns that it needs"),
    "include_num_input_tokens_seen": ("no", "it would count prompts without codes; tokens_per_second is logged"),
}
# Fields of `accelerator_config` for data loaders that accelerate makes, which it does not here.
_LOADER_FIELDS = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")


def _preset_field(name: str, help_text: str) -> Any:
    values = ", ".join(f"{preset}: {fields[name]}" for preset, fields in PRESETS.items())
    return field(default=None, metadata={"help": f"{help_text} Left out, the preset decides ({values})."})


@dataclass
class Janus4oSFTConfig(trl.SFTConfig):
    r"""[`~trl.SFTConfig`] with the recipe of Janus-4o.

    A field that the preset governs is `None` until it is set; after construction it holds the value that is used.

    Defaults that differ from the parent: `max_length=None` (a shorter one silently drops edit rows),
    `remove_unused_columns=False`, `activation_checkpointing=False`, `ddp_find_unused_parameters=False` (every trained
    parameter has a gradient in every step), `logging_nan_inf_filter=False` (such a step stops the run), `bf16` where
    a GPU has it, `dataset_kwargs` skips TRL's text preparation, and `learning_rate`, `weight_decay`, `warmup_steps`,
    `lr_scheduler_type` and `lr_scheduler_kwargs` are the published recipe's (paper section 3, `train_janus.py`).
    """

    preset: str = field(
        default="default",
        metadata={"help": f"Recipe: {' or '.join(PRESETS)} (as published, without what was a mistake of the loop)."},
    )
    prompt_dropout: float | None = _preset_field(
        "prompt_dropout", "Share of text-to-image samples whose prompt becomes pads."
    )
    prompt_dropout_granularity: str | None = _preset_field(
        "prompt_dropout_granularity", "block: a whole prompt at a time; token: each of its tokens by itself."
    )
    source_code_dropout: float | None = _preset_field(
        "source_code_dropout", "Share of the sources of edits whose codes are left as pads."
    )
    source_code_dropout_granularity: str | None = _preset_field(
        "source_code_dropout_granularity", "block: all codes of a source at a time; token: each code by itself."
    )
    instruction_dropout: float | None = _preset_field(
        "instruction_dropout", "Share of edit samples whose instruction alone becomes pads."
    )
    null_dropout: float | None = _preset_field(
        "null_dropout", "Share of edit samples whose instruction, codes and picture all become pads."
    )
    decay_norms_and_embeddings: bool | None = _preset_field(
        "decay_norms_and_embeddings", "Weight decay for norms, biases and embeddings, too."
    )
    geometry: str | None = _preset_field(
        "geometry", "How pictures become square: pad (grey bars) or center_crop; kept with the checkpoint."
    )

    freeze_vision_tower: bool = field(default=False, metadata={"help": "Leave the vision tower as it is."})
    freeze_aligners: bool = field(
        default=False, metadata={"help": "Leave the aligners of the vision tower and of the codes as they are."}
    )

    row_layout: str = field(
        default="packed",
        metadata={
            "help": "packed: the samples of a batch in one row without padding (the attention sdpa then becomes "
            "janus4o_packed, the same kernels without a dense mask); padded: one row for each."
        },
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill each batch of a device with samples up to this many tokens, padding included, instead of "
            "`per_device_train_batch_size` samples."
        },
    )
    edit_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of edits among the samples of an epoch; rows are repeated or left out to reach it, others "
            "in each epoch (the same with max_tokens_per_batch). Left out, every row comes once, as in the paper."
        },
    )
    max_skipped_rows: int = field(
        default=100,
        metadata={
            "help": "Stop when more rows than this had a picture that cannot be read; each is named and counted."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Also keep an exponential moving average of the weights, saved in `ema/`; such as 0.999."},
    )
    sample_steps: int | None = field(
        default=None, metadata={"help": "Draw the sample prompts every so many steps, into `samples/`."}
    )
    sample_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts to draw; without any, the first held-out rows."}
    )
    sample_seed: int = field(default=0, metadata={"help": "Seed of the sample pictures, the same at every step."})
    optim_bf16_stochastic_rounding: bool = field(
        default=False,
        metadata={"help": "Round bf16 weights at random, so that small steps are not lost; for torchao's optimizers."},
    )

    max_length: int | None = field(default=None, metadata={"help": "Must stay unset: rows are never cut."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns itself."})
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Old name of activation_checkpointing.", "nargs": "?", "const": True}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained parameter has a gradient in every step."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite stops the run."})
    bf16: bool | None = field(
        default=None, metadata={"help": "Compute in bf16 autocast. Left out, where a GPU has it and fp16 is off."}
    )
    learning_rate: float = field(default=5e-6, metadata={"help": "Peak learning rate."})  # paper section 3
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW decay."})  # train_janus.py
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up, a share of all steps if below 1."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the schedule; cosine_with_min_lr ends at 0.15 of the peak."}
    )
    dataset_kwargs: dict | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True}, metadata={"help": "Passed to TRL."}
    )

    def __post_init__(self) -> None:
        self._take_preset()
        if self.bf16 is None:
            has_bf16 = not self.use_cpu and torch.cuda.is_available()
            self.bf16 = has_bf16 and torch.cuda.is_bf16_supported(including_emulation=False) and not self.fp16
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": MIN_LR_SHARE}
        super().__post_init__()
        self._check_recipe()
        self._check_numbers()
        self._check_fixed()

    def __getstate__(self) -> dict[str, Any]:
        """Without the tokens: checkpoints hold pickled arguments."""
        return self.__dict__ | {"hub_token": None, "model_init_kwargs": self._without_token()}

    def to_dict(self) -> dict[str, Any]:
        """As the parent's, without the tokens: it goes into records and to trackers."""
        plain: dict[str, Any] = super().to_dict()
        return plain | {"model_init_kwargs": self._without_token()}

    def _without_token(self) -> dict[str, Any] | None:
        given = self.model_init_kwargs
        return given if given is None else {name: value for name, value in given.items() if name != "token"}

    def _take_preset(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; choose {' or '.join(PRESETS)}.")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_recipe(self) -> None:
        for name in _SHARES:
            share = getattr(self, name)
            if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
                raise ValueError(f"{name} is {share!r}; it is a share, a number between 0 and 1.")
        if self.instruction_dropout + self.null_dropout > 1:
            raise ValueError(
                f"instruction_dropout ({self.instruction_dropout}) and null_dropout ({self.null_dropout}) exclude "
                "each other, so they may be 1 at most together."
            )
        choices = {
            "prompt_dropout_granularity": GRANULARITIES,
            "source_code_dropout_granularity": GRANULARITIES,
            "row_layout": LAYOUTS,
            "geometry": ("pad", "center_crop"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(allowed)}.")

    def _check_numbers(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it lies between 0 and 1, such as 0.999.")
        for name in ("max_tokens_per_batch", "sample_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1.")
        if self.max_skipped_rows < 0:
            raise ValueError(f"max_skipped_rows is {self.max_skipped_rows}; it is at least 0.")

    def _check_fixed(self) -> None:
        for name, (value, why) in _FIXED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} is {getattr(self, name)!r}; leave it unset: {why}.")
        usual = AcceleratorConfig()
        for name in _LOADER_FIELDS:
            if getattr(self.accelerator_config, name) != getattr(usual, name):
                raise ValueError(f"accelerator_config sets {name}; leave it out: {_ORDER}.")
