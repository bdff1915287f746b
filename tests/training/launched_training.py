# SPDX-License-Identifier: Apache-2.0
"""Small training runs as a test describes them: started by a launcher as a program, or called as a function.

accelerate launch ... tests/training/launched_training.py runs.json
"""

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Image, concatenate_datasets, load_from_disk
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from transformers import TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1]))  # launched, it is alone

from small_checkpoints import save_ours

from sharegpt4o_image.cli_datasets import EXIT_INTERRUPTED
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor
from sharegpt4o_image.offline_teacher.layout import compose
from sharegpt4o_image.offline_teacher.renderer import render
from sharegpt4o_image.offline_teacher.sampling import training_request
from sharegpt4o_image.training.sft_config import Janus4oSFTConfig
from sharegpt4o_image.training.sft_trainer import Janus4oSFTTrainer
from sharegpt4o_image.training.tiny_data import edit_rows, text_to_image_rows

ACCELERATE_CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


# ------------------------------------------------------------------ for the tests


def write_inputs(folder):
    """A model and nine rows, four of them edits; the same rows without codes as `pictures`."""
    save_ours(folder / "model")
    model = Janus4oForImageGeneration.from_pretrained(folder / "model")
    processor = Janus4oProcessor.from_pretrained(folder / "model")
    rows = concatenate_datasets([edit_rows(model, processor, 4, 1), text_to_image_rows(model, processor, 5, 2)])
    rows = rows.add_column("id", [f"row-{i}" for i in range(len(rows))])
    rows.save_to_disk(folder / "rows")
    rng = random.Random(3)
    targets = [{"bytes": _png(render(compose(training_request(rng), rng), 32)), "path": None} for _ in rows]
    pictures = rows.remove_columns(["target_codes", "source_codes"]).add_column("output_image", targets)
    pictures.cast_column("output_image", Image()).save_to_disk(folder / "pictures")


def described(inputs, output_dir, rows="rows", resumes=False, strategy=None, kills=None, **config):
    """What [`run`] takes; `kills` is a moment and the step at which it comes."""
    defaults = {"per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "warmup_steps": 0}
    return {
        "output_dir": str(output_dir),
        "model": str(inputs / "model"),
        "rows": str(inputs / rows),
        "strategy": strategy,
        "resumes": resumes,
        "kills": kills,
        "config": defaults | config,
    }


def launch_command(folder, runs, config_name=None, **changes):
    """The command that trains `runs` one after the other, under `accelerate launch` if a configuration is named."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(runs))
    command = [__file__, str(folder / "runs.json")]
    if config_name is None:
        return [sys.executable, *command]
    config = yaml.safe_load((ACCELERATE_CONFIGS / f"{config_name}.yaml").read_text())
    config |= {"num_processes": 2, "use_cpu": True, "mixed_precision": "no"} | changes
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(config))
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    return [*launcher, "--config_file", str(folder / "accelerate.yaml"), *command]


def start(command, **options):
    """Its output goes to a pipe; the number of threads is this process's, on which the last bits depend."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def finish(process, expected=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == expected, output[-6000:]
    return output


def result_of(output_dir, process_index=0):
    return torch.load(Path(output_dir, f"result-{process_index}.pt"), weights_only=False)


def differences(a, b, path=""):
    """Where two nested results differ in any bit."""
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    if isinstance(a, dict):
        missing = [f"{path}/{key}" for key in a.keys() ^ b.keys()]
        return missing + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple):
        missing = [] if len(a) == len(b) else [f"{path}: {len(a)} and {len(b)}"]
        pairs = enumerate(zip(a, b, strict=False))
        return missing + [line for i, (x, y) in pairs for line in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [f"{path}: {a} and {b}"]


def logged(result):
    """The lines of the log without what depends on the clock."""
    kept = ("loss", "grad_norm", "learning_rate", "token_accuracy", "epoch", "step", "eval_loss", "eval_token")
    lines = [{key: line[key] for key in line if key.startswith(kept)} for line in result["log"]]
    return [line for line in lines if "loss" in line or "eval_loss" in line]


def _png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


# ------------------------------------------------------------------ in the launched process


class RecordingTrainer(Janus4oSFTTrainer):
    """Keeps what each forward pass saw, and sends its process a signal where it is told to."""

    def __init__(self, *args, kills=None, **kwargs):
        self.seen = []
        self.kills = kills or []
        super().__init__(*args, **kwargs)
        self.add_callback(_Moments(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.model.training:
            drawn = [inputs["input_ids"], inputs.get("dropped_source_codes", torch.zeros(0, 1))]
            self.seen.append(
                {
                    "step": self.state.global_step,
                    "ids": inputs["sample_ids"],
                    "has_edit": "source_pixel_values" in inputs,
                    "items": int(num_items_in_batch),
                    "drawn": hashlib.sha256(b"".join(one.numpy().tobytes() for one in drawn)).hexdigest(),
                }
            )
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def reach(self, moment):
        if [moment, self.state.global_step] == list(self.kills):
            os.kill(os.getpid(), signal.SIGTERM if moment == "SIGTERM" else signal.SIGKILL)

    def _save_optimizer_and_scheduler(self, output_dir):
        self.reach("saving the optimizer")
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir):
        self.reach("saving the generators")
        super()._save_rng_state(output_dir)


class _Moments(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.reach("training")
        self.trainer.reach("SIGTERM")

    def on_step_end(self, args, state, control, **kwargs):
        path = Path(args.output_dir, f"process-{args.process_index}.json")
        path.with_suffix(".tmp").write_text(json.dumps({"pid": os.getpid(), "step": state.global_step}))
        path.with_suffix(".tmp").replace(path)


def run(description):
    """Train, and keep in `output_dir` what came of it: `result-<process>.pt` and the folder `final`."""
    output_dir = Path(description["output_dir"])
    output_dir.mkdir(parents=True, exist_ok=True)
    # told to use the CPU, accelerate 1.15 quietly takes DDP where FSDP or DeepSpeed was asked for
    device = {"ddp_backend": "gloo"} if description["strategy"] == "deepspeed" else {"use_cpu": True}
    if description["strategy"] == "deepspeed":
        TrainingArguments._validate_args = lambda self: None  # it wants a GPU for bf16
    config = {"report_to": "none", "disable_tqdm": True} | device | description["config"]
    arguments = Janus4oSFTConfig(str(output_dir), **config)
    if description["strategy"] == "fsdp":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = RecordingTrainer(
        Janus4oForImageGeneration.from_pretrained(description["model"]),
        arguments,
        processing_class=Janus4oProcessor.from_pretrained(description["model"]),
        train_dataset=load_from_disk(description["rows"]),
        eval_dataset=load_from_disk(description["rows"]),
        kills=description["kills"],
    )
    assert trainer.is_fsdp_enabled == (description["strategy"] == "fsdp")
    assert trainer.is_deepspeed_enabled == (description["strategy"] == "deepspeed")
    trainer.train(resume_from_checkpoint=description["resumes"])
    torch.save(_result(trainer), output_dir / f"result-{arguments.process_index}.pt")
    trainer.save_model(str(output_dir / "final"))
    return trainer


def _result(trainer):
    optimizer = trainer.optimizer.state_dict()
    optimizer.pop("loss_scaler", None)  # DeepSpeed's, not of plain values
    if trainer.is_fsdp_enabled:
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        optimizer = get_optimizer_state_dict(trainer.model, trainer.optimizer.optimizer, options=whole)
    return {
        "weights": trainer.accelerator.get_state_dict(trainer.model_wrapped),
        "optimizer": optimizer,
        "schedule": trainer.lr_scheduler.state_dict(),
        "log": trainer.state.log_history,
        "seen": trainer.seen,
    }


if __name__ == "__main__":
    were_interrupted = [run(one).was_interrupted for one in json.loads(Path(sys.argv[1]).read_text())]
    sys.exit(EXIT_INTERRUPTED if any(were_interrupted) else 0)
