# SPDX-License-Identifier: Apache-2.0
"""Trained tiny checkpoints -> the ones in `assets/`: best guidance chosen, scored, stored in half precision.

    python -m sharegpt4o_image.tiny_release --work-dir runs/tiny

Guidance is chosen on items of another seed than the ones whose scores are reported. The weights were trained in fp32
and are stored as fp16 (the image tokenizer was rounded to it before its codes were used); `config.json` says float32,
so that they are loaded as that.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sharegpt4o_image.builders.model_card import ModelCardFacts, Score, Sweep, Training, render_model_card
from sharegpt4o_image.checkpoints import ASSETS_DIR, TINY_JANUS_4O, TINY_JANUS_PRO, load_checkpoint
from sharegpt4o_image.demo_report import loss_curve
from sharegpt4o_image.evaluation.scene_benchmark import EDIT_KINDS, PromptItem, edit_items, prompt_items
from sharegpt4o_image.evaluation.scene_runner import Item, draw_and_judge
from sharegpt4o_image.janus4o import Janus4oForImageGeneration, Janus4oProcessor

logger = logging.getLogger(__name__)

GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
EDIT_FREEDOMS = (0.0, 0.5, 1.0, 2.0, 5.0)
_CHOICE_SEED, _REPORT_SEED = 1, 0
_CHOICE_ITEMS, _REPORT_ITEMS = 40, 200  # of each kind

Curve = list[tuple[float, float]]


def main() -> None:
    """Release both checkpoints of a work directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="where `tiny_checkpoints` wrote")
    parser.add_argument("--assets-dir", type=Path, default=ASSETS_DIR, help="where the checkpoints go")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(os.cpu_count() or 1)
    for name in (TINY_JANUS_PRO, TINY_JANUS_4O):
        release(arguments.work_dir / name, arguments.assets_dir / name)


def release(source_dir: Path, target_dir: Path) -> None:
    """Choose guidance, store, score what was stored, and describe it in its README."""
    model, processor = load_checkpoint(str(source_dir))
    can_edit = target_dir.name == TINY_JANUS_4O
    choice: dict[str, Sequence[Item]] = {
        "text-to-image prompts": _seen_pairs(prompt_items(_CHOICE_ITEMS, _CHOICE_SEED))
    }
    if can_edit:
        choice["edits"] = edit_items(_CHOICE_ITEMS, _CHOICE_SEED)
    guidance_curves = {what: _guidance_curve(model, processor, items) for what, items in choice.items()}
    model.config.guidance_scale = _best_scale(list(guidance_curves.values()))
    model.config.edit_freedom = 0.0  # what is fine-tuned from `tiny-janus-pro` begins by following its source
    freedom_curve = _freedom_curve(model, processor, choice["edits"]) if can_edit else []
    if freedom_curve:
        model.config.edit_freedom = max(freedom_curve, key=lambda point: point[1])[0]
    _store(model, processor, target_dir)
    stored, stored_processor = load_checkpoint(str(target_dir))
    scores = {
        kind: score
        for items in (prompt_items(_REPORT_ITEMS, _REPORT_SEED), edit_items(_REPORT_ITEMS, _REPORT_SEED))
        for kind, score in draw_and_judge(stored, stored_processor, items).table.items()
    }
    log = _stage_log(source_dir)
    log["image_tokenizer"], log["decoder"] = (
        _stage_log(source_dir.with_name(n)) for n in ("image_tokenizer", "decoder")
    )
    log |= {"guidance_curves": guidance_curves, "freedom_curve": freedom_curve, "scores": scores}
    log |= {"guidance_scale": stored.config.guidance_scale, "edit_freedom": stored.config.edit_freedom}
    (target_dir / "training_log.json").write_text(json.dumps(log, indent=1), encoding="utf-8")
    points = [(entry["step"], entry["loss"]) for entry in log["curve"] if "loss" in entry]
    (target_dir / "loss_curve.svg").write_text(loss_curve(points), encoding="utf-8")
    (target_dir / "README.md").write_text(_readme(target_dir.name, log), encoding="utf-8")
    logger.info("released %s: %s", target_dir.name, {kind: round(s["score"], 3) for kind, s in scores.items()})


def _stage_log(stage_dir: Path) -> dict[str, Any]:
    log: dict[str, Any] = json.loads((stage_dir / "log.json").read_text(encoding="utf-8"))
    return log


def _seen_pairs(items: list[PromptItem]) -> list[PromptItem]:
    return [item for item in items if item.kind != "unseen pair"]


def _guidance_curve(model: Janus4oForImageGeneration, processor: Janus4oProcessor, items: Sequence[Item]) -> Curve:
    """Share of right pictures at each guidance scale; edits follow their source (edit freedom 0)."""
    curve = []
    for scale in GUIDANCE_SCALES:
        scored = draw_and_judge(model, processor, items, guidance_scale=scale, edit_freedom=0.0)
        curve.append((scale, sum(v.correct for v in scored.verdicts) / len(items)))
        logger.info("%s, guidance %s: %.3f", items[0].kind, *curve[-1])
    return curve


def _best_scale(curves: list[Curve]) -> float:
    """The guidance scale whose mean over the curves is highest; the lowest of equal ones."""
    return max(GUIDANCE_SCALES, key=lambda scale: sum(dict(curve)[scale] for curve in curves))


def _freedom_curve(model: Janus4oForImageGeneration, processor: Janus4oProcessor, items: Sequence[Item]) -> Curve:
    """Share of right edits at each edit freedom, with the guidance chosen before."""
    curve = []
    for freedom in EDIT_FREEDOMS:
        scored = draw_and_judge(model, processor, items, edit_freedom=freedom)
        curve.append((freedom, sum(v.correct for v in scored.verdicts) / len(items)))
        logger.info("edit freedom %s: %.3f", *curve[-1])
    return curve


def _store(model: Janus4oForImageGeneration, processor: Janus4oProcessor, target_dir: Path) -> None:
    shutil.rmtree(target_dir, ignore_errors=True)
    model.half().save_pretrained(target_dir)
    processor.save_pretrained(target_dir)
    path = target_dir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(_as_float32(config), indent=2) + "\n", encoding="utf-8")


def _as_float32(config: dict[str, object]) -> dict[str, object]:
    """`config` with every `dtype`, also of its parts, set to float32."""
    changed = {key: _as_float32(value) if isinstance(value, dict) else value for key, value in config.items()}
    return changed | {"dtype": "float32"} if "dtype" in config else changed


def _readme(name: str, log: dict[str, Any]) -> str:
    """The checkpoint's README, from its log alone."""
    can_edit = name == TINY_JANUS_4O
    curves = [("guidance_scale", what, curve) for what, curve in log["guidance_curves"].items()]
    curves += [("edit_freedom", "edits", log["freedom_curve"])] if log["freedom_curve"] else []
    return render_model_card(
        ModelCardFacts(
            name=name,
            summary=f"A tiny Janus that {'draws and edits' if can_edit else 'draws; it never saw an edit'}. "
            "Trained from nothing on scenes of the offline teacher.",
            path=f"sharegpt4o_image/assets/{name}",
            license="apache-2.0",
            can_edit=can_edit,
            sampling={option: log[option] for option in ("guidance_scale", "edit_freedom")},
            training=_training(log),
            scores=tuple(
                Score(kind, score["score"], (score["low"], score["high"]), int(score["images"]), _command(name, kind))
                for kind, score in log["scores"].items()
            ),
            scores_note=_SCORES_NOTE,
            sweeps=tuple(_sweep(option, what, curve) for option, what, curve in curves),
            limits=("It knows the shapes, colours and backgrounds of the offline teacher, and no other word.",),
        )
    )


_SCORES_NOTE = (
    'Held-out prompts and edits: every word was seen in training, the combination never (for "unseen pair": not even '
    "shape and colour together). A picture is right when the scene detector reads from its pixels exactly the objects "
    "asked for, on the background asked for. Drawn at temperature 1 with the checkpoint's own defaults."
)


def _sweep(option: str, what: str, curve: Curve) -> Sweep:
    return Sweep(option, f"share right, other {what}", tuple((value, share) for value, share in curve))


def _command(name: str, kind: str) -> str:
    benchmark = "scene-edits" if kind in EDIT_KINDS else "scenes"
    return f"sharegpt4o-image evaluate {benchmark} -m {name} --limit {_REPORT_ITEMS}"


def _training(log: dict[str, Any]) -> Training:
    return Training(
        commands=(
            "python -m sharegpt4o_image.training.tiny_checkpoints --work-dir runs/tiny",
            "python -m sharegpt4o_image.tiny_release --work-dir runs/tiny",
        ),
        recipe=log["recipe"],
        num_steps=log["curve"][-1]["step"],
        final_loss=round([entry["loss"] for entry in log["curve"] if "loss" in entry][-1], 4),
        hardware="2 cores",
        minutes=log["minutes"],
        loss_plot="loss_curve.svg",
        notes=(
            "Both commands together: make tiny-checkpoints.",
            f"The image tokenizer before it took {log['image_tokenizer']['minutes']} minutes, its decoder "
            f"{log['decoder']['minutes']}.",
            "training_log.json holds the whole loss curve.",
        ),
    )


if __name__ == "__main__":
    main()
