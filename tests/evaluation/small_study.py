# SPDX-License-Identifier: Apache-2.0
"""A study folder as `preference build` writes it, of small pictures; every second prompt is hostile or an edit."""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

PROMPTS = (
    """<img src=x onerror="document.title='owned'">""",
    "<b>bold</b> &amp; </div><script>document.title='owned'</script>",
    "**stars**, # heading, [link](javascript:alert(1)) and $x^2$",
    "A cat \U0001f408 and ${document.title='owned'} {{value}} {% x %} %(keys)s",
    "A very long prompt: " + "a meadow with many flowers, " * 60,
    "First line\n  second line \u202eturned\u202c 'quotes' \"doubled\"",
)
SECRET_MODELS = ("janus-4o-7b", "rival-xl")


def write_study(folder: Path, num_pairs: int = 20, **update: Any) -> list[dict[str, Any]]:
    """Write the study; returns its pairs."""
    rng = random.Random(num_pairs)
    (folder / "pictures").mkdir(parents=True)

    def picture(width: int, text: str) -> str:
        name = f"{rng.getrandbits(128):032x}.png"
        drawn = Image.new("RGB", (width, 128), tuple(rng.randrange(60, 250) for _ in range(3)))
        ImageDraw.Draw(drawn).text((10, 10), text, fill="black")
        drawn.save(folder / "pictures" / name)
        return name

    pairs = [
        {
            "pair": f"{rng.getrandbits(64):016x}",
            "block": f"{number // 2:016x}",
            "prompt": PROMPTS[number] if number < len(PROMPTS) else f"A picture of the number {number}",
            "source": picture(128, f"source {number}") if number % 3 == 0 else None,
            "first": picture(128, f"first {number}"),
            "second": picture(128 + 40 * (number % 2), f"second {number}"),
        }
        for number in range(num_pairs)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    study = {
        "format": 1,
        "title": "Which <i>picture</i> is better?",
        "criteria": "First: which picture follows the text better? Then: which is <b>clearer</b>?",
        "num_pairs": num_pairs,
        "has_sources": True,
        "allows_both_bad": False,
        "repeats": 0.1,
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    (folder / "study.json").write_text(json.dumps(study | update), encoding="utf-8")
    key = {"format": 1, "models": SECRET_MODELS, "pairs": {pair["pair"]: SECRET_MODELS for pair in pairs}}
    (folder / "key.json").write_text(json.dumps(key), encoding="utf-8")
    return pairs


def read_votes(folder: Path) -> list[dict[str, Any]]:
    """The lines of `votes.jsonl`."""
    return [json.loads(line) for line in (folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()]
