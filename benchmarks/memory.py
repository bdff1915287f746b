# SPDX-License-Identifier: Apache-2.0
"""How much memory the released sizes take, by task: weights and key/value cache, computed from their shapes.

    python benchmarks/memory.py [--json out/memory.json]

Nothing is measured here: the models stand on the meta device. Activations come on top.
"""

import argparse
import json
from pathlib import Path

import torch

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration

GIB = 2**30
# layers, width, feed-forward width, heads (configurations of deepseek-ai/Janus-Pro-*)
SIZES = {"Janus-Pro-1B": (24, 2048, 5632, 16), "Janus-Pro-7B": (30, 4096, 11008, 32)}
VOCABULARY_SIZE = 102_400

PROMPT_TOKENS = 64  # of the prompt or instruction alone: a long sentence
# task -> guidance branches, source images
TASKS = {"text to image": (2, 0), "edit": (3, 1), "edit, edit_freedom=0": (2, 1), "text to image, guidance 1": (1, 0)}
BATCHES = (1, 4, 16)


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


def as_table(table: list[dict[str, object]]) -> str:
    """GiB as a Markdown table."""
    columns = list(table[0])
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in table:
        cells = [value if isinstance(value, str) else f"{value:.1f}" for value in row.values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it as JSON on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    path = parser.parse_args().json
    table = rows()
    print(as_table(table))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
