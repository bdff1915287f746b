# SPDX-License-Identifier: Apache-2.0
"""What it saves that the pictures of one prompt share its prefill, keys and values; and what more of each costs.

    python benchmarks/shared_prefix.py [--curves] [--quick] [--json out/shared_prefix.json]

1. Edits of one source, 1,240 prompt tokens, three guidance branches: `num_images_per_prompt` against the same prompt
given as often in a list, in turns; greedy codes are compared first. 2. The attention of one layer at mid-generation,
shared against copied. 3. With `--curves`: seconds for 1, 2, 4 pictures of a prompt, for 1, 2, 4 prompts, and for
prompts of several lengths. On a GPU in bf16, where codes may differ, with a capture for each shape; without sharing,
16 edits of the shape `7b` take some 70 GiB.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from generate import BOI, BOS, PAD, SHAPES, make_models
from torch import Tensor
from transformers import BatchFeature

from sharegpt4o_image.janus4o.decoding_janus4o import attend

EOI, IMAGE = 4, 5
INSTRUCTION_TOKENS = 84  # with 2 x 578 source tokens: 1,240
OPTIONS: dict[str, Any] = {
    "guidance_scale": 5.0, "edit_freedom": 5.0, "do_sample": False, "output_type": "codes"
}  # fmt: skip


class LayoutProcessor:
    """Stands for a processor: lays out random instructions, with or without a source."""

    def __init__(self, num_codes: int, num_tokens: int, vocabulary: int, has_source: bool):
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(6, vocabulary, (num_tokens - 2,), generator=generator).tolist()
        block = [BOI, *[IMAGE] * num_codes, EOI, BOI, *[PAD] * num_codes, EOI] if has_source else []
        self._ids = torch.tensor([[BOS, *block, *words, BOI]])
        side = int(num_codes**0.5) * 16
        self._pixels = torch.rand(1, 3, side, side, generator=generator) * 2 - 1 if has_source else None

    def prepare_image_generation(self, prompts: list[str], sources: Any = None) -> BatchFeature:
        """The same layout for every prompt."""
        ids = self._ids.expand(len(prompts), -1)
        batch = BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        if self._pixels is not None:
            batch["source_pixel_values"] = self._pixels.expand(len(prompts), -1, -1, -1)
        return batch

    def unconditional_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """BOS, pads, boi."""
        null = torch.full_like(input_ids, PAD)
        null[:, 0], null[:, -1] = BOS, BOI
        return null


def synchronize() -> None:
    """Wait for a GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def best_of(arms: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """The least seconds of each arm, which has run before, in turns."""
    seconds = dict.fromkeys(arms, float("inf"))
    for _ in range(rounds):
        for name, run in arms.items():
            synchronize()
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def compare_edits(model: Any, processor: LayoutProcessor, num_pictures: int, rounds: int) -> dict[str, float]:
    """Pictures of one edit, sharing and not."""
    if model.device.type == "cuda":
        length = processor.prepare_image_generation(["x"])["input_ids"].shape[1]
        model.compile_generation([num_pictures], length, num_branches=3)
        limit, model.share_prompt_from = model.share_prompt_from, length + 10_000
        model.compile_generation([num_pictures], length, num_branches=3)
        model.share_prompt_from = limit
    arms = {
        "shared": lambda: model.generate_image(
            "x", num_images_per_prompt=num_pictures, processor=processor, **OPTIONS
        ),
        "not shared": lambda: model.generate_image(["x"] * num_pictures, processor=processor, **OPTIONS),
    }
    are_equal = torch.equal(*(run() for run in arms.values()))
    if model.dtype == torch.float32 and not are_equal:
        raise SystemExit("Sharing changes codes; nothing was timed.")
    return best_of(arms, rounds)


def compare_attention(
    model: Any, num_pictures: int, prefix: int, own: int, shape: str, rounds: int
) -> dict[str, float]:
    """One layer's attention for three branches: copied keys and values, and shared ones merged with the own."""
    _, width, _, heads, _, _ = SHAPES[shape]
    head_dim, branches = width // heads, 3
    torch.manual_seed(0)
    rows = branches * num_pictures
    query = torch.randn(rows, heads, 1, head_dim).to(model.device, model.dtype)
    prompt = torch.randn(2, branches, heads, prefix, head_dim).to(query)
    cache = torch.randn(2, rows, heads, own, head_dim).to(query)
    copied = torch.cat([prompt.repeat_interleave(num_pictures, 1), cache], dim=3)

    def shared() -> Tensor:
        left, left_weight = attend(
            query.view(branches, num_pictures, heads, head_dim).transpose(1, 2), prompt[0], prompt[1], None
        )
        right, right_weight = attend(query, cache[0], cache[1], None)
        left, left_weight = (part.transpose(1, 2).reshape(rows, heads, 1, -1) for part in (left, left_weight))
        return torch.lerp(left, right, (right_weight - left_weight).sigmoid().to(left.dtype))

    arms = {"shared": shared, "not shared": lambda: F.scaled_dot_product_attention(query, *copied)}
    error = (arms["shared"]() - arms["not shared"]()).abs().max() / arms["not shared"]().abs().max()
    return best_of(arms, rounds) | {"relative error": float(error)}


def curves(model: Any, num_codes: int, vocabulary: int, rounds: int) -> dict[str, dict[float, float]]:
    """Seconds against pictures of one prompt, prompts, tokens of a prompt, and the share of the codes guided."""

    def draw(prompts: int = 1, pictures: int = 1, tokens: int = 64, until: float = 1.0) -> Callable[[], Any]:
        processor = LayoutProcessor(num_codes, tokens, vocabulary, has_source=False)
        options = OPTIONS | {"num_images_per_prompt": pictures, "guidance_until": until, "processor": processor}
        return lambda: model.generate_image(["x"] * prompts, **options)

    arms: dict[Any, Callable[[], Any]] = {("pictures", n): draw(pictures=n) for n in (1, 2, 4)}
    arms |= {("prompts", n): draw(prompts=n) for n in (2, 4)}
    arms |= {("prompt tokens", n): draw(tokens=n) for n in (256, 1024)}
    arms |= {("guided share, 4 pictures", share): draw(pictures=4, until=share) for share in (0.5, 0.25)}
    if model.device.type == "cuda":
        for length, batch_sizes in ((64, (1, 2, 4)), (256, (1,)), (1024, (1,))):
            model.compile_generation(batch_sizes, length)
    for run in arms.values():
        run()
    seconds = best_of(arms, rounds)
    seconds[("prompts", 1)] = seconds[("prompt tokens", 64)] = seconds[("pictures", 1)]
    seconds[("guided share, 4 pictures", 1)] = seconds[("pictures", 4)]
    result: dict[str, dict[float, float]] = {}
    for (what, number), value in sorted(seconds.items()):
        result.setdefault(what, {})[number] = value
    return result


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--codes", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curves", action="store_true", help="also what more of each costs")
    parser.add_argument("--quick", action="store_true", help="64 codes and 1 round, to see that it runs")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.codes, given.rounds = 64, 1
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, _ = make_models(given.shape, given.codes, dtype, device)
    model.config.eoi_token_id, model.config.image_token_id = EOI, IMAGE
    vocabulary = SHAPES[given.shape][4]
    edit = LayoutProcessor(given.codes, INSTRUCTION_TOKENS, vocabulary, has_source=True)
    length = edit.prepare_image_generation(["x"])["input_ids"].shape[1]
    result: dict[str, Any] = {"shape": given.shape, "codes": given.codes, "threads": given.threads, "prompt": length}
    result["edits"] = compare_edits(model, edit, given.pictures, given.rounds)
    result["attention of 16"] = compare_attention(model, 16, length, given.codes // 2, given.shape, 10)
    if given.curves:
        result["curves"] = curves(model, given.codes, vocabulary, given.rounds)
    ratio = {name: result[name]["not shared"] / result[name]["shared"] for name in ("edits", "attention of 16")}
    print(f"{given.shape}, {given.codes} codes, prompt of {length} tokens, {given.threads} threads")
    edits, attention = _seconds(result["edits"]), _seconds(result["attention of 16"])
    print(f"{given.pictures} edits of one source: {edits}; {ratio['edits']:.2f} times as fast")
    print(f"attention of 16, one layer: {attention}; {ratio['attention of 16']:.2f} times as fast")
    for what, points in result.get("curves", {}).items():
        print(f"{what}: " + ", ".join(f"{number}: {seconds:.2f} s" for number, seconds in points.items()))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _seconds(arms: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" + ("" if "error" in name else " s") for name, value in arms.items())


if __name__ == "__main__":
    main()
