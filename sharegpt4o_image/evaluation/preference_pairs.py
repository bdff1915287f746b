# SPDX-License-Identifier: Apache-2.0
"""Prompts x pairs of models -> a study folder that raters can be shown, and its sealed key.

Writes, below the study's folder: `pairs.jsonl`, `pictures/` (nothing in either tells a model), `key.json` (what does),
and `study.json` last, so that its existence means that the rest is there.

Sides and order are drawn from the seed and a secret salt. The salt is drawn once and kept in the key: with the key,
the same inputs give the same study; without it, nobody can compute which model drew what.
"""

import hashlib
import itertools
import json
import random
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from sharegpt4o_image.errors import UserError
from sharegpt4o_image.evaluation.drawing import save_picture, write_whole
from sharegpt4o_image.evaluation.preference_key import FORMAT, SIDES, read_key, secret_hex, secret_rng, write_key
from sharegpt4o_image.evaluation.preference_pictures import bare_picture, degraded, read_upright
from sharegpt4o_image.evaluation.preference_prompts import Fault, Prompt, check_pictures, find_pictures

STUDY_FILE = "study.json"
PAIRS_FILE = "pairs.jsonl"
PICTURES_DIR = "pictures"
TITLE = "Which picture is better?"
# The paper's criteria and their order; the wording is our choice.
CRITERIA = (
    "First: which picture follows the text better? For an edit, what the text does not name should have stayed. "
    "If both do so equally well: which one is visually clearer?"
)
_NUM_SHOWN = 5

T = TypeVar("T")
ModelPair = tuple[str, str]


@dataclass(frozen=True)
class StudyOptions:
    """How a study is drawn and shown.

    Args:
        seed (`int`): of the draw of prompts, sides and order.
        num_prompts (`int`, *optional*): drawn among those given; default: all.
        repeats (`float`): share of pairs that a rater sees again, with sides swapped.
        height (`int`): of all pictures in pixels; 512 is our choice.
        num_checks (`int`): pairs of a picture and its spoilt copy.
        skip_missing (`bool`): leave out prompts without all pictures.
        allows_both_bad (`bool`): offer "both bad" as an answer.
        title, criteria (`str`): what raters read.
    """

    seed: int = 0
    num_prompts: int | None = None
    repeats: float = 0.1
    height: int = 512
    num_checks: int = 0
    skip_missing: bool = False
    allows_both_bad: bool = False
    title: str = TITLE
    criteria: str = CRITERIA


@dataclass(frozen=True)
class Drawing:
    """A picture that raters are shown."""

    prompt: Prompt
    model: str | None  # None: the source picture
    is_degraded: bool = False

    def file_name(self, salt: str) -> str:
        """Random digits to who has no key."""
        digits = secret_hex(salt, "picture", self.prompt.prompt_id, self.model or "", f"degraded {self.is_degraded}")
        return f"{digits[:32]}.png"


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt; for a check, both of one model and one of them spoilt."""

    first: Drawing
    second: Drawing
    block: tuple[str, ...]  # shared with the pair of the same two models the other way round

    def name(self, salt: str) -> str:
        """Random digits to who has no key."""
        first, second = sorted((drawing.model or "", drawing.is_degraded) for drawing in (self.first, self.second))
        return secret_hex(salt, "pair", self.first.prompt.prompt_id, str(first), str(second))[:16]

    def block_name(self, salt: str) -> str:
        """Random digits to who has no key. Raters see a block as built or all swapped: so models stay balanced."""
        return secret_hex(salt, "block", *self.block)[:16]


def model_pairs(names: Sequence[str], chosen: Sequence[str]) -> list[ModelPair]:
    """`A,B` of each pair that is to be compared -> pairs of models; all of them where none is chosen."""
    if not chosen:
        return list(itertools.combinations(names, 2))
    pairs: list[ModelPair] = []
    for value in chosen:
        first, _, second = (part.strip() for part in value.partition(","))
        unknown = [name for name in (first, second) if name not in names]
        if unknown or first == second:
            raise UserError(f"--pairs {value} is not A,B with two of the models {', '.join(names)}")
        if (first, second) in pairs or (second, first) in pairs:
            raise UserError(f"--pairs {value} is given twice; name each pair of models once")
        pairs.append((first, second))
    return pairs


def build_study(
    study: Path,
    prompts: Sequence[Prompt],
    models: Mapping[str, Path],
    pairs: Sequence[ModelPair],
    options: StudyOptions,
) -> dict[str, Any]:
    """Write the study folder; returns what `build --json` prints."""
    key = read_key(study)
    if key is None and _is_taken(study):
        raise UserError(f"{study} holds something else than a study; choose another folder with --output")
    compared = {name: folder for name, folder in models.items() if any(name in pair for pair in pairs)}
    found = {name: find_pictures(folder) for name, folder in compared.items()}
    pictures, faults = check_pictures(_shown(prompts, "pictures checked"), found)
    _check_faults(faults, options)
    faulty = {fault.prompt_id for fault in faults}
    drawn = _drawn_prompts([prompt for prompt in prompts if prompt.prompt_id not in faulty], options)
    salt = str(key["salt"]) if key else secrets.token_hex(32)
    planned = _plan(drawn, pairs, salt, options)
    new = _key(planned, pictures, salt, options, list(models), faults, key)
    if key is not None:
        _check_same(study, key, new)
    _write(study, planned, pictures, new, options)
    extra = {
        name: sorted(path.name for stem in of_id.keys() - {p.prompt_id for p in prompts} for path in of_id[stem])
        for name, of_id in found.items()
    }
    return {
        "study": str(study),
        "pairs": len(planned),
        "checks": options.num_checks,
        "prompts": len(drawn),
        "pairs_of_models": {" vs ".join(pair): len(drawn) for pair in pairs},
        "left_out": [asdict(fault) for fault in faults],
        "extra": {name: names for name, names in extra.items() if names},
    }


def _is_taken(study: Path) -> bool:
    if not study.is_dir():
        return study.exists()
    return any(not path.name.startswith(".unfinished-") for path in study.iterdir())


def to_text(summary: Mapping[str, Any]) -> str:
    """What `build` prints."""
    lines = [
        f"{summary['study']}: {summary['pairs']} pairs on {summary['prompts']} prompts, {summary['checks']} checks "
        f"among them. Keep key.json from raters; {PAIRS_FILE} and {PICTURES_DIR}/ name no model.",
        *(f"  {pair}: {n}" for pair, n in summary["pairs_of_models"].items()),
    ]
    if summary["left_out"]:
        num_prompts = len({fault["prompt_id"] for fault in summary["left_out"]})
        lines.append(f"Left out, {num_prompts} prompts:")
        lines += [f"  {_described(Fault(**fault))}" for fault in summary["left_out"]]
    for model, names in summary["extra"].items():
        shown = ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")
        lines.append(f"No prompt for {len(names)} pictures of {model}: {shown}")
    return "\n".join(lines)


def _described(fault: Fault) -> str:
    return f"prompt {fault.prompt_id}, {fault.model or 'source picture'}: {fault.reason}"


# ------------------------------------------------------------------ plan


def _check_faults(faults: Sequence[Fault], options: StudyOptions) -> None:
    if faults and not options.skip_missing:
        shown = "; ".join(map(_described, faults[:_NUM_SHOWN])) + ("; ..." if len(faults) > _NUM_SHOWN else "")
        raise UserError(
            f"{len(faults)} pictures are unusable ({shown}); mend them, or leave their prompts out by --skip-missing"
        )


def _drawn_prompts(prompts: list[Prompt], options: StudyOptions) -> list[Prompt]:
    num_prompts = len(prompts) if options.num_prompts is None else options.num_prompts
    if num_prompts > len(prompts) or not prompts:
        raise UserError(f"{len(prompts)} prompts have all their pictures; give more, or lower --num-prompts")
    if options.num_checks > num_prompts:
        raise UserError(f"{options.num_checks} checks cannot be made of {num_prompts} prompts; lower --checks")
    chosen = sorted(random.Random(options.seed).sample(range(len(prompts)), num_prompts))
    return [prompts[index] for index in chosen]


def _plan(prompts: Sequence[Prompt], pairs: Sequence[ModelPair], salt: str, options: StudyOptions) -> list[Pair]:
    """Every pair of models on every prompt, each model first in half of them, and the checks; in random order."""
    rng = secret_rng(salt, "plan", str(options.seed))
    planned = []
    for a, b in pairs:
        marks = _half(len(prompts), rng)
        for prompt, is_swapped, number in zip(prompts, marks, _block_numbers(marks), strict=True):
            first, second = (b, a) if is_swapped else (a, b)
            planned.append(Pair(Drawing(prompt, first), Drawing(prompt, second), (a, b, str(number))))
    names = sorted({name for pair in pairs for name in pair})
    checked = rng.sample(range(len(prompts)), options.num_checks)
    marks = _half(len(checked), rng)
    for index, is_swapped, number in zip(checked, marks, _block_numbers(marks), strict=True):
        good = Drawing(prompts[index], rng.choice(names))
        bad = Drawing(good.prompt, good.model, is_degraded=True)
        block = ("check", str(number))
        planned.append(Pair(bad, good, block) if is_swapped else Pair(good, bad, block))
    rng.shuffle(planned)
    return planned


def _half(count: int, rng: random.Random) -> list[bool]:
    """True for half of `count`, and for the odd one out by chance, in random order."""
    num_true = count // 2 + (count % 2 and rng.randrange(2))
    marks = [index < num_true for index in range(count)]
    rng.shuffle(marks)
    return marks


def _block_numbers(marks: Sequence[bool]) -> list[int]:
    """The n-th that is marked and the n-th that is not have the number n."""
    counts = {False: itertools.count(), True: itertools.count()}
    return [next(counts[mark]) for mark in marks]


# ------------------------------------------------------------------ key


def _key(
    planned: Sequence[Pair],
    pictures: Mapping[tuple[str, str], Path],
    salt: str,
    options: StudyOptions,
    models: list[str],
    faults: Sequence[Fault],
    found: Mapping[str, Any] | None,
) -> dict[str, Any]:
    drawings = {drawing.file_name(salt): drawing for drawing in _drawings(planned)}
    return {
        "format": FORMAT,
        "salt": salt,
        "seed": options.seed,
        "models": models,
        "options": {name: getattr(options, name) for name in ("num_prompts", "repeats", "height", "num_checks")},
        "created_at": found["created_at"] if found else datetime.now(UTC).isoformat(timespec="seconds"),
        "left_out": [asdict(fault) for fault in faults],
        "pairs": {pair.name(salt): _key_entry(pair) for pair in planned},
        "pictures": {
            name: {
                "prompt_id": drawing.prompt.prompt_id,
                "prompt": drawing.prompt.text,
                "model": drawing.model,
                "is_degraded": drawing.is_degraded,
                "sha256": hashlib.sha256(_original(drawing, pictures).read_bytes()).hexdigest(),
            }
            for name, drawing in sorted(drawings.items())
        },
    }


def _key_entry(pair: Pair) -> dict[str, Any]:
    entry = {
        "prompt_id": pair.first.prompt.prompt_id,
        "first_model": pair.first.model,
        "second_model": pair.second.model,
    }
    if pair.first.is_degraded or pair.second.is_degraded:
        entry["degraded"] = SIDES[0] if pair.first.is_degraded else SIDES[1]
    return entry


def _check_same(study: Path, found: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differing = [name for name in new if found.get(name) != json.loads(json.dumps(new[name]))]
    if differing:
        raise UserError(
            f"{study} was built from other {', '.join(differing)}; give what it was built from, "
            "or choose another folder with --output"
        )


def _drawings(planned: Iterable[Pair]) -> Iterable[Drawing]:
    for pair in planned:
        yield from (pair.first, pair.second)
        if pair.first.prompt.source is not None:
            yield Drawing(pair.first.prompt, None)


def _original(drawing: Drawing, pictures: Mapping[tuple[str, str], Path]) -> Path:
    if drawing.model is None:
        assert drawing.prompt.source is not None
        return drawing.prompt.source
    return pictures[drawing.model, drawing.prompt.prompt_id]


# ------------------------------------------------------------------ files


def _write(
    study: Path,
    planned: Sequence[Pair],
    pictures: Mapping[tuple[str, str], Path],
    key: Mapping[str, Any],
    options: StudyOptions,
) -> None:
    salt = key["salt"]
    study.mkdir(parents=True, exist_ok=True)
    write_key(study, key)
    (study / PICTURES_DIR).mkdir(exist_ok=True)
    drawings = {drawing.file_name(salt): drawing for drawing in _drawings(planned)}
    # By their random names: were they written model by model, the times of the files would tell.
    for name in _shown(sorted(drawings), "pictures written"):
        if not (study / PICTURES_DIR / name).exists():
            _write_picture(study / PICTURES_DIR, name, drawings[name], pictures, options.height, salt)
    lines = [json.dumps(_line(pair, salt), ensure_ascii=False) for pair in planned]
    write_whole(study / PAIRS_FILE, "".join(f"{line}\n" for line in lines).encode())
    shown = {
        "format": FORMAT,
        "title": options.title,
        "criteria": options.criteria,
        "num_pairs": len(planned),
        "has_sources": any(pair.first.prompt.source is not None for pair in planned),
        "allows_both_bad": options.allows_both_bad,
        "repeats": options.repeats,
        "created_at": key["created_at"],
    }
    write_whole(study / STUDY_FILE, json.dumps(shown, indent=1, ensure_ascii=False).encode())


def _write_picture(
    folder: Path, name: str, drawing: Drawing, pictures: Mapping[tuple[str, str], Path], height: int, salt: str
) -> None:
    try:
        picture = bare_picture(read_upright(_original(drawing, pictures)), height)
    except ValueError as error:
        raise UserError(f"{_original(drawing, pictures)} {error}: it has changed; run the command again") from error
    if drawing.is_degraded:
        picture = degraded(picture, secret_rng(salt, "noise", name))
    save_picture(folder, name, picture)


def _line(pair: Pair, salt: str) -> dict[str, Any]:
    prompt = pair.first.prompt
    return {
        "pair": pair.name(salt),
        "block": pair.block_name(salt),
        "prompt": prompt.text,
        "source": None if prompt.source is None else Drawing(prompt, None).file_name(salt),
        "first": pair.first.file_name(salt),
        "second": pair.second.file_name(salt),
    }


def _shown(items: Sequence[T], label: str) -> Iterable[T]:
    """The items, with a progress bar on stderr."""
    return track(items, label, console=Console(stderr=True), transient=True)
