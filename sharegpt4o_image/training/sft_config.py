# SPDX-License-Identifier: Apache-2.0
"""Configuration of [`Janus4oSFTTrainer`]."""

from dataclasses import dataclass, field

import trl


@dataclass
class Janus4oSFTConfig(trl.SFTConfig):
    r"""[`~trl.SFTConfig`] with the masks of Janus-4o's recipe.

    Defaults that differ from the parent: `max_length=None` (a shorter one silently drops edit rows),
    `remove_unused_columns=False`, `gradient_checkpointing=False`, `bf16=False`, `dataset_kwargs` skips TRL's text
    preparation, and `learning_rate`, `weight_decay`, `warmup_steps`, `lr_scheduler_type` and `lr_scheduler_kwargs`
    are the published recipe's (paper section 3 and upstream `train_janus.py`).
    """

    prompt_dropout: float = field(
        default=0.1,  # paper section 2, train_janus.py 172: the whole prompt of a text-to-image sample
        metadata={"help": "Share of text-to-image samples whose whole prompt becomes pads."},
    )
    source_code_dropout: float = field(
        default=0.5,  # paper section 2, train_janus.py 324: the whole block of a source's codes
        metadata={"help": "Share of edit samples whose source codes are left as pads."},
    )
    null_dropout: float = field(
        default=0.1,  # our choice: upstream never trains the edit's unconditional row (defect T4)
        metadata={"help": "Share of edit samples whose prompt, codes and picture all become pads."},
    )

    max_length: int | None = field(default=None, metadata={"help": "Must stay unset: rows are never cut."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns itself."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for activation memory."})
    bf16: bool = field(default=False, metadata={"help": "Compute in bf16 autocast."})
    learning_rate: float = field(default=5e-6, metadata={"help": "Peak learning rate."})  # paper section 3
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW decay of matrices."})  # train_janus.py
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up, a share of all steps if below 1."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Schedule."})
    lr_scheduler_kwargs: dict | str | None = field(
        default_factory=lambda: {"min_lr_rate": 0.15},  # train_janus.py: floor 15 % of the peak
        metadata={"help": "Arguments of the schedule."},
    )
    dataset_kwargs: dict | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True}, metadata={"help": "Passed to TRL."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_dropout", "source_code_dropout", "null_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share, between 0 and 1.")
        if self.max_length is not None:
            raise ValueError(
                f"max_length is {self.max_length}; leave it unset, since a cut row loses its image codes."
            )
