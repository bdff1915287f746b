# SPDX-License-Identifier: Apache-2.0
"""How much memory the released sizes take, by task: weights and key/value cache, computed from their shapes.

    python benchmarks/memory.py [--json out/memory.json]
    python benchmarks/memory.py --measure [--json out/measured.json]

Nothing is measured for the table: the models stand on the meta device. Activations come on top. With `--measure`
(Linux, a CPU), a model of 4 layers of 256 draws, each batch in a process of its own, and how far its memory grows at
most is held against the keys and values that were computed before.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from generate import GUIDANCE_SCALE, TokenProcessor, make_models, random_prompt

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration
from sharegpt4o_image.janus4o.batching_janus4o import CacheSize

GIB = 2**30
NUM_CODES = 576  # a picture of the released models
# layers, width, feed-forward width, heads (configurations of deepseek-ai/Janus-Pro-*)
SIZES = {"Janus-Pro-1B": (24, 2048, 5632, 16), "Janus-Pro-7B": (30, 4096, 11008, 32)}
VOCABULARY_SIZE = 102_400

PROMPT_TOKENS = 64  # of the prompt or instruction alone: a long sentence
# task -> guidance branches, source images
TASKS = {"text to image": (2, 0), "edit": (3, 1), "edit, edit_freedom=0": (2, 1), "text to image, guidance 1": (1, 0)}
BATCHES = (1, 4, 16)
# pictures of one prompt, and its tokens: copied, shared, and shared by many
MEASURED = ((8, 64), (8, 512), (16, 1240))


def shape_model(name: str) -> Janus4oForImageGeneration:
    """A released model's shape, without storage."""
    layers, width, intermediate, heads = SIZES[name]
    config = Janus4oConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
        },
        vision_config={"projection_dim": width},
        vq_config={"projection_dim": width, "image_token_embed_dim": width},
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return Janus4oForImageGeneration(config)


def weight_bytes(model: Janus4oForImageGeneration) -> int:
    """bf16, the image tokenizer fp32, as `from_pretrained(dtype=torch.bfloat16)` keeps them."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tokenizer = sum(parameter.numel() for parameter in model.model.vqmodel.parameters())
    return 2 * (total - tokenizer) + 4 * tokenizer


def cache_bytes(model: Janus4oForImageGeneration, num_pictures: int, branches: int, num_sources: int) -> int:
    """Keys and values of every row at the end of a picture, bf16."""
    text, num_codes = model.model.language_model.config, model.config.num_image_tokens
    length = PROMPT_TOKENS + num_sources * 2 * (num_codes + 2) + num_codes
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    return num_pictures * branches * length * per_token


def rows() -> list[dict[str, object]]:
    """One row for each size and task: GiB of weights, and of weights and cache for each batch size."""
    table = []
    for name in SIZES:
        model = shape_model(name)
        weights = weight_bytes(model)
        for task, (branches, num_sources) in TASKS.items():
            totals = {
                f"{batch} at once": (weights + cache_bytes(model, batch, branches, num_sources)) / GIB
                for batch in BATCHES
            }
            table.append({"model": name, "task": task, "weights": weights / GIB, **totals})
    return table


def measure(num_pictures: int, prompt_tokens: int) -> dict[str, object]:
    """How far the memory of this process grows at most while pictures are drawn, against what was computed."""
    torch.set_num_threads(2)
    model, _ = make_models("memory", NUM_CODES, torch.float32, "cpu")
    prompt = TokenProcessor(random_prompt("memory", prompt_tokens))

    def draw(number: int, last_step: int) -> None:
        model.generate_image(
            "x", num_images_per_prompt=number, guidance_scale=GUIDANCE_SCALE, do_sample=False, output_type="codes",
            processor=prompt, callback_on_step_end=lambda step, codes: step == last_step,
        )  # fmt: skip

    draw(1, 4)  # what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew (man 5 proc)
    before = _status("VmRSS")
    draw(num_pictures, NUM_CODES)
    grown = _status("VmHWM") - before
    is_shared = num_pictures > 1 and prompt_tokens >= model.share_prompt_from
    size = CacheSize(2, prompt_tokens, num_pictures, NUM_CODES, is_shared)
    computed = size.num_bytes(model.config.text_config, itemsize=4)
    return {
        "pictures": num_pictures, "prompt tokens": prompt_tokens, "computed MiB": computed / 2**20,
        "measured MiB": grown / 2**20, "measured / computed": grown / computed,
    }  # fmt: skip


def _status(field: str) -> int:
    """Bytes, of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[field].split()[0])


def measured_rows(batches: tuple[tuple[int, int], ...]) -> list[dict[str, object]]:
    """Each in a new process: memory that an earlier batch gave back would hide the growth.

    glibc is told to give back at once what is freed, so that the growth is what is in use.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    table = []
    for batch in batches:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            table.append(process.submit(measure, *batch).result())
    return table


def as_table(table: list[dict[str, object]]) -> str:
    """Markdown; quantities have one decimal, shares two."""
    columns = list(table[0])
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in table:
        cells = [_cell(name, value) for name, value in row.items()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if "/" in column else f"{value:.1f}"


def main() -> None:
    """Print the table, and write it as JSON on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="draw, and hold the memory against what was computed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = measured_rows(MEASURED) if given.measure else rows()
    print(as_table(table))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
