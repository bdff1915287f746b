# SPDX-License-Identifier: Apache-2.0
"""How fast image codes are drawn: ours, transformers' `generate` and a plain loop over a growing cache.

    python benchmarks/generate.py --shape host [--quick] [--json out/generate.json]

The three arms share weights, prompts and guidance; their greedy codes are compared first, and without equality in fp32
nothing is timed. Then they run in turns, a warm-up round and the rounds that count; the least of each is reported with
its median. Weights are random, made on the device. On a GPU, our steps are compiled and captured before.

Shapes: `host` (30 layers of 64: the cost of launching kernels), `small` (8 layers of 512: arithmetic and memory),
`memory` (4 layers of 256, see `memory.py`), `1b` and `7b` (Janus-Pro's, for a GPU).
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, JanusForConditionalGeneration

from sharegpt4o_image.janus4o import Janus4oConfig, Janus4oForImageGeneration
from sharegpt4o_image.janus4o.batching_janus4o import CacheSize
from sharegpt4o_image.janus4o.capture_janus4o import PROMPT_BUCKET, FixedDecoder
from sharegpt4o_image.janus4o.decoding_janus4o import fused_layers

# layers, width, feed-forward width, heads, vocabulary, image codes
SHAPES = {
    "host": (30, 64, 172, 4, 512, 1024),
    "small": (8, 512, 1376, 8, 512, 16384),
    "memory": (4, 256, 704, 8, 512, 1024),
    "1b": (24, 2048, 5632, 16, 102_400, 16384),
    "7b": (30, 4096, 11008, 32, 102_400, 16384),
}
GUIDANCE_SCALE = 5.0  # the paper's
BOS, PAD, BOI = 0, 2, 3

Arm = Callable[[], Tensor]


class TokenProcessor:
    """Stands for a processor: prompts are token ids already."""

    def __init__(self, input_ids: Tensor):
        self._input_ids = input_ids

    def prepare_image_generation(self, prompts: list[str], sources: Any = None) -> Any:
        """The same ids for every prompt."""
        from transformers import BatchFeature

        ids = self._input_ids.expand(len(prompts), -1)
        return BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def unconditional_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """BOS, pads, boi."""
        null = torch.full_like(input_ids, PAD)
        null[:, 0], null[:, -1] = BOS, BOI
        return null


def make_models(shape: str, num_codes: int, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Ours and transformers', with one set of weights."""
    layers, width, intermediate, heads, vocabulary, num_embeddings = SHAPES[shape]
    side = int(num_codes**0.5)
    config = Janus4oConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 16384,
            "bos_token_id": BOS,
            "pad_token_id": PAD,
        },
        vision_config={
            "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "projection_dim": width,
            "image_size": side * 16, "num_image_tokens": num_codes,
        },
        vq_config={
            "base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_res_blocks": 1, "latent_channels": 32,
            "num_embeddings": num_embeddings, "projection_dim": width, "image_token_embed_dim": width,
        },
        boi_token_id=BOI,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        ours = Janus4oForImageGeneration(config).eval().requires_grad_(False)
        theirs: Any = JanusForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.dim() > 1 and "vqmodel" not in name and "vision" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    theirs.eval().requires_grad_(False)
    fused_layers(ours.model.language_model, 1)  # joins weights: from here on they stay where they are
    theirs.load_state_dict(ours.state_dict(), assign=True)  # the same tensors, not a copy
    theirs.generation_config.generation_kwargs = {"boi_token_id": BOI}
    theirs.generation_config.bos_token_id, theirs.generation_config.pad_token_id = BOS, PAD
    return ours, theirs


def random_prompt(shape: str, num_tokens: int) -> Tensor:
    """Token ids (1, L) from BOS to boi."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(4, SHAPES[shape][4], (1, num_tokens), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = BOS, BOI
    return input_ids


@torch.inference_mode()
def plain_loop(model: Any, input_ids: Tensor, num_pictures: int, num_codes: int) -> Tensor:
    """The loop that everybody writes: `DynamicCache`, the layers as they are, two rows a picture, greedy."""
    null = TokenProcessor(input_ids).unconditional_ids(input_ids, input_ids)
    rows = torch.cat([input_ids, null]).repeat_interleave(num_pictures, 0)
    embeds = model.get_input_embeddings()(rows)
    cache, codes = DynamicCache(), []
    for _ in range(num_codes):
        outputs = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        conditional, unconditional = model.model.generation_head(outputs.last_hidden_state[:, -1]).float().chunk(2)
        code = (unconditional + GUIDANCE_SCALE * (conditional - unconditional)).argmax(-1)
        codes.append(code)
        embeds = model.prepare_embeddings_for_image_generation(code.repeat(2)[:, None])
    return torch.stack(codes, 1)


def make_arms(ours: Any, theirs: Any, input_ids: Tensor, num_pictures: int, num_codes: int) -> dict[str, Arm]:
    """The three ways of drawing the same codes."""
    rows = input_ids.repeat(num_pictures, 1)
    return {
        "ours": lambda: ours.generate_image(
            "x", num_images_per_prompt=num_pictures, guidance_scale=GUIDANCE_SCALE, do_sample=False,
            output_type="codes", processor=TokenProcessor(input_ids),
        ),
        "transformers": lambda: theirs.generate(
            input_ids=rows, attention_mask=torch.ones_like(rows), generation_mode="image", do_sample=False,
            guidance_scale=GUIDANCE_SCALE,
        ),
        "plain_loop": lambda: plain_loop(ours, input_ids, num_pictures, num_codes),
    }  # fmt: skip


def time_arms(arms: dict[str, Arm], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Seconds of wall and processor time: the arms in turns, the first round not counted."""
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, run in arms.items():
            _synchronize(device)
            started, spent = time.perf_counter(), time.process_time()
            run()
            _synchronize(device)
            if number:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - spent)
    return {
        name: {"seconds": min(wall[name]), "median": statistics.median(wall[name]), "cpu_seconds": min(cpu[name])}
        for name in arms
    }


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class CountKernels(TorchDispatchMode):
    """Counts the operators that do something: views are free, unless they had to copy (`contiguous`, `reshape`)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count `func` and run it."""
        result = func(*args, **(kwargs or {}))
        is_free = func.is_view and isinstance(args[0], Tensor) and _shares_memory(result, args[0])
        self.count += not is_free
        return result


def _shares_memory(result: Any, given: Tensor) -> bool:
    first = result if isinstance(result, Tensor) else result[0]
    return bool(first.untyped_storage().data_ptr() == given.untyped_storage().data_ptr())


def kernels_per_step(arm: Callable[[int], Tensor]) -> float:
    """Operators of one more step: the difference between drawings of 12 and of 2 codes, over 10."""
    counts = []
    for num_codes in (12, 2):
        with CountKernels() as counter:
            arm(num_codes)
        counts.append(counter.count)
    return (counts[0] - counts[1]) / 10


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(2**28 if device == "cuda" else 2**26, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        _synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * source.nbytes / best


def peak_bytes(device: str, run: Arm) -> int:
    """The most memory: of one drawing on a GPU, of the whole process otherwise."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def weight_bytes(model: Any) -> int:
    """What a step reads of the weights: the language model without its embeddings, and the generation parts."""
    inner = model.model
    parts = [*inner.language_model.layers, inner.language_model.norm, inner.generation_aligner, inner.generation_head]
    return sum(p.nbytes for part in parts for p in part.parameters())


def main() -> None:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="host")
    parser.add_argument("--pictures", type=int, default=1, help="of one prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--codes", type=int, default=576, help="codes a picture, a square number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--quick", action="store_true", help="144 codes and 2 rounds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.codes, given.rounds = 144, 2
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    ours, theirs = make_models(given.shape, given.codes, dtype, device)
    input_ids = random_prompt(given.shape, given.prompt_tokens).to(device)
    captured = None
    if device == "cuda":
        captured = ours.compile_generation([given.pictures], given.prompt_tokens)[0]
    arms = make_arms(ours, theirs, input_ids, given.pictures, given.codes)
    codes = {name: run() for name, run in arms.items()}
    are_equal = all(torch.equal(one, codes["plain_loop"]) for one in codes.values())
    if dtype == torch.float32 and not are_equal:
        raise SystemExit("The arms draw different codes; nothing was timed.")
    result = report(given, ours, arms, device, are_equal, input_ids)
    result["capture"] = None if captured is None else asdict(captured)
    print_report(result)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


def report(
    given: argparse.Namespace, model: Any, arms: dict[str, Arm], device: str, are_equal: bool, input_ids: Tensor
) -> dict[str, Any]:
    """All that was measured, for the table and the JSON file."""
    times = time_arms(arms, given.rounds, device)
    per_step = {name: 1e3 * time_["seconds"] / given.codes for name, time_ in times.items()}
    bandwidth = copy_bandwidth(device)
    return {
        "shape": given.shape,
        "pictures": given.pictures,
        "prompt_tokens": given.prompt_tokens,
        "codes": given.codes,
        "rounds": given.rounds,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "tokens_equal": are_equal,
        "ms_per_step": per_step,
        "ms_per_step_median": {name: 1e3 * time_["median"] / given.codes for name, time_ in times.items()},
        "cpu_seconds": {name: time_["cpu_seconds"] for name, time_ in times.items()},
        "seconds_per_image": {name: time_["seconds"] / given.pictures for name, time_ in times.items()},
        "times_faster": {name: per_step[name] / per_step["ours"] for name in per_step if name != "ours"},
        "weight_bytes_per_second": weight_bytes(model) / (per_step["ours"] / 1e3),
        "copy_bytes_per_second": bandwidth,
        "kernels_per_step": {
            "ours": _our_kernels(model, input_ids),
            "captured": _captured_kernels(model, given.prompt_tokens),
            "plain_loop": _plain_kernels(model, input_ids),
        },
        "planned_bytes": _planned_bytes(model, given),
        "peak_bytes": peak_bytes(device, arms["ours"]),
    }


def _our_kernels(model: Any, input_ids: Tensor) -> float:
    def draw(num_codes: int) -> Tensor:
        codes: Tensor = model.generate_image(
            "x", guidance_scale=GUIDANCE_SCALE, do_sample=False, output_type="codes",
            processor=TokenProcessor(input_ids), callback_on_step_end=lambda step, codes: step + 1 == num_codes,
        )  # fmt: skip
        return codes

    return kernels_per_step(draw)


@torch.inference_mode()
def _captured_kernels(model: Any, prompt_tokens: int) -> int:
    """Operators of the step that a CUDA graph holds, launched one by one."""
    size = CacheSize(2, prompt_tokens, 1, model.config.num_image_tokens, False)
    language_model = model.model.language_model
    decoder = FixedDecoder(language_model, size, fused_layers(language_model, size.num_rows))
    codes = torch.zeros(1, dtype=torch.long, device=model.device)
    with CountKernels() as counter:
        model.decode_step(codes, 2, lambda hidden: decoder.step(hidden, size.num_codes))
    return counter.count


def _planned_bytes(model: Any, given: argparse.Namespace) -> int:
    """Weights, and keys and values of the batch."""
    is_captured = model.device.type == "cuda"
    length = -(-given.prompt_tokens // PROMPT_BUCKET) * PROMPT_BUCKET if is_captured else given.prompt_tokens
    is_shared = given.pictures > 1 and length >= model.share_prompt_from
    size = CacheSize(2, length, given.pictures, given.codes, is_shared)
    cache = size.num_bytes(model.config.text_config, model.get_input_embeddings().weight.element_size())
    return cache + sum(parameter.nbytes for parameter in model.parameters())


def _plain_kernels(model: Any, input_ids: Tensor) -> float:
    return kernels_per_step(lambda num_codes: plain_loop(model, input_ids, 1, num_codes))


def print_report(result: dict[str, Any]) -> None:
    """One table of ratios, and what belongs to it."""
    print(
        f"{result['shape']}: {result['pictures']} pictures of one prompt of {result['prompt_tokens']} tokens, "
        f"{result['codes']} codes, guidance, {result['device']}, {result['threads']} threads; "
        f"greedy codes {'equal' if result['tokens_equal'] else 'differ'}"
    )
    print(f"{'arm':14}{'ms/step':>9}{'median':>9}{'s/image':>9}{'images/s':>10}{'ours is faster':>16}")
    for name, milliseconds in result["ms_per_step"].items():
        seconds = result["seconds_per_image"][name]
        faster = result["times_faster"].get(name)
        print(
            f"{name:14}{milliseconds:9.2f}{result['ms_per_step_median'][name]:9.2f}{seconds:9.2f}{1 / seconds:10.2f}"
            + (f"{faster:15.2f}x" if faster else "")
        )
    share = result["weight_bytes_per_second"] / result["copy_bytes_per_second"]
    kernels = ", ".join(f"{name} {count:.0f}" for name, count in result["kernels_per_step"].items())
    print(
        f"kernels a step: {kernels}; weights read at {result['weight_bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{share:.0%} of the measured copy bandwidth; peak memory {result['peak_bytes'] / 2**30:.2f} GiB, of which "
        f"weights, keys and values are {result['planned_bytes'] / 2**30:.2f} GiB"
    )
    if result["capture"] is not None:
        print(f"compiling and capturing took {result['capture']['seconds']:.1f} s, once")


if __name__ == "__main__":
    main()
