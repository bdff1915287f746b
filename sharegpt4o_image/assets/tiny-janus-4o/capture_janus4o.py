# SPDX-License-Identifier: Apache-2.0
"""The decode step as CUDA graphs: captured once for a shape, replayed for every code of every later call.

A graph reads and writes the memory it was captured with, so what it works on is allocated once (`FixedDecoder`), and
prompts are padded to a bucket. Attention reads the cache up to the end of a stage, under a mask, and each stage has a
graph, so that the first codes do not read the room of the last.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batching_janus4o import CacheSize
from .decoding_janus4o import Decoder, DecodeStep, FusedLayer, PromptPrefix, aligned_mask, is_hooked

# B pictures, R rows (B for each guidance branch), G prefixes, D width, V codes, E width of a head, S prefix tokens

PROMPT_BUCKET = 64  # prompts are padded to a multiple of this many tokens (our choice)
STAGE = 64  # codes of a stage (our choice): the cache is read on average half a stage too far
NUM_PROJECTIONS = 7  # matrices of a Llama layer: query, key, value, output, gate, up, down
KEPT_SHAPES = 3  # that were captured on the way; the one used longest ago goes first (our choice)
MAX_WASTE = 2  # how many times the bytes that it needs a call may use, of steps captured on the way (our choice)
CAPTURE_TOLERANCE = 1e-2  # relative, of the logits: in bf16 kernels may be chosen anew (our choice)
WARM_UPS = 3  # runs before a capture, in which libraries choose kernels and allocate what they need


class FixedDecoder(Decoder):
    """A decoder that runs the same kernels on the same memory at every step of a stage."""

    def __init__(self, language_model: Any, size: CacheSize, layers: list[Any]):
        super().__init__(language_model, size, layers)
        weight = language_model.norm.weight
        num_rows, length = size.num_rows, self._start + size.num_codes

        def zeros(*shape: int) -> Tensor:  # not empty: what a mask hides must not be NaN
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

        heads, width = self._num_key_heads, self._head_dim
        self._caches = [zeros(2, num_rows, heads, length, width) for _ in layers]
        self._own_mask_R11L = aligned_mask(num_rows, length, weight)
        if size.is_shared:
            self._prefix_caches = [zeros(2, size.num_prefixes, heads, size.prefix_length, width) for _ in layers]
            self._prefix_mask_G11S = aligned_mask(size.num_prefixes, size.prefix_length, weight)
        self._cos_TR1E, self._sin_TR1E = (zeros(size.num_codes, num_rows, 1, width) for _ in range(2))
        self._position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self._place = self._position + self._start
        self.restart()

    @property
    def device(self) -> torch.device:
        """Where its memory is."""
        return self._position.device

    def load(self, prefix: PromptPrefix, prefix_of_row: Tensor) -> None:
        """Read the prompts, and begin at code 0.

        Args:
            prefix: the prompts, as long as the size says.
            prefix_of_row: (R,), the prefix that each row begins with.
        """
        is_shared, start = self.size.is_shared, self._start
        for number, own in enumerate(self._caches):
            for half, given in enumerate(prefix.take_layer(number)):
                if is_shared:
                    self._prefix_caches[number][half].copy_(given)
                else:
                    own[half, :, :, :start] = given[prefix_of_row]
        if self._prefix_mask_G11S is not None:
            self._prefix_mask_G11S.copy_(prefix.mask_G11S)
        elif self._own_mask_R11L is not None:
            self._own_mask_R11L[..., :start] = prefix.mask_G11S[prefix_of_row]
        cos, sin = self._rotations(prefix.num_tokens_G[prefix_of_row])
        self._cos_TR1E.copy_(cos)
        self._sin_TR1E.copy_(sin)
        self.restart()

    def restart(self) -> None:
        """Begin again at code 0."""
        assert self._own_mask_R11L is not None
        self._own_mask_R11L[..., self._start :] = float("-inf")
        self._position.zero_()
        self._place.fill_(self._start)

    def step(self, hidden_RD: Tensor, num_places: int) -> Tensor:
        """Embeddings of the code after the last step's -> hidden states; no number comes from the host.

        Attention reads the first `num_places` places of the codes; they must reach beyond this one.
        """
        mask, end = self._own_mask_R11L, self._start + num_places
        assert mask is not None
        mask.index_fill_(3, self._place, 0.0)

        def write(cache: Tensor, written: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
            cache.index_copy_(3, self._place, written[:, :, :, None])
            return cache[0, :, :, :end], cache[1, :, :, :end], mask[..., :end]

        cos, sin = (table.index_select(0, self._position)[0] for table in (self._cos_TR1E, self._sin_TR1E))
        hidden_RD = self._run(hidden_RD, cos, sin, write)
        self._position.add_(1)
        self._place.add_(1)
        return hidden_RD


# ------------------------------------------------------------------ kernels joined by the compiler


class CompiledLayer:
    """A `FusedLayer` whose small kernels (norms, rotation, activation, residuals) the compiler joins."""

    def __init__(self, layer: FusedLayer, activation: nn.Module):
        self.head_dim, self._num_turned, self._activation = layer.head_dim, layer.num_turned, activation
        self.input_norm, self._feed_forward_norm = layer.input_norm, layer.feed_forward_norm
        self._qkv, self._gate_up = layer.query_key_value.weight, layer.gate_up.weight
        self._output, self._down = layer.output.weight, layer.down.weight

    def heads(self, hidden_RD: Tensor, cos_R1E: Tensor, sin_R1E: Tensor) -> Tensor:
        """As `FusedLayer.heads`."""
        norm = self.input_norm
        return _compiled(_heads)(
            hidden_RD, norm.weight, norm.eps, self._qkv, cos_R1E, sin_R1E, self._num_turned, self.head_dim
        )

    def output_of(self, hidden_RD: Tensor, attended: Tensor) -> Tensor:
        """As `FusedLayer.output_of`."""
        norm = self._feed_forward_norm
        return _compiled(_output)(
            hidden_RD, attended, self._output, norm.weight, norm.eps, self._gate_up, self._down, self._activation
        )


def _heads(
    hidden_RD: Tensor, norm_D: Tensor, eps: float, qkv: Tensor, cos_R1E: Tensor, sin_R1E: Tensor, num_turned: int,
    head_dim: int,
) -> Tensor:  # fmt: skip
    projected = F.linear(F.rms_norm(hidden_RD, norm_D.shape, norm_D, eps), qkv)
    heads = projected.view(len(hidden_RD), -1, head_dim)
    turned, kept = heads[:, :num_turned], heads[:, num_turned:]
    flipped = turned.unflatten(-1, (2, head_dim // 2)).flip(-2).flatten(-2)
    return torch.cat([turned * cos_R1E + flipped * sin_R1E, kept], dim=1)


def _output(
    hidden_RD: Tensor, attended: Tensor, output: Tensor, norm_D: Tensor, eps: float, gate_up: Tensor, down: Tensor,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    hidden_RD = hidden_RD + F.linear(attended, output)
    gate, up = F.linear(F.rms_norm(hidden_RD, norm_D.shape, norm_D, eps), gate_up).chunk(2, dim=-1)
    return hidden_RD + F.linear(activation(gate) * up, down)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layers' weights are arguments, so that all layers run what was compiled once."""
    return torch.compile(function, fullgraph=True)


def compiled_layers(layers: list[FusedLayer]) -> list[CompiledLayer]:
    """The same layers with their small kernels joined."""
    if not all(layer.is_plain for layer in layers):
        raise ValueError("The model has quantised weights, which joins_kernels=True cannot read; pass False.")
    return [CompiledLayer(layer, layers[0].activation) for layer in layers]


# ------------------------------------------------------------------ graphs


_CAPTURING = threading.Lock()  # one graph can be captured at a time in a process


def can_be_captured(language_model: Any, others: list[nn.Module]) -> bool:
    """Whether a step does the same at every call: adapters can be switched, hooks can do anything.

    Args:
        language_model: a Llama of transformers.
        others: what else a step runs; none of them has adapters if it has no modules but transformers' and torch's.
    """
    for layer in language_model.layers:
        linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
        if len(linear) != NUM_PROJECTIONS:
            return False
    modules = [module for part in (language_model, *others) for module in part.modules()]
    are_known = all(type(module).__module__.startswith(("torch.", "transformers.")) for module in modules)
    are_plain = all(type(module) is nn.Linear for module in modules if isinstance(module, nn.Linear))
    return are_known and are_plain and not any(is_hooked(module) for module in modules)


class GraphPlace:
    """Memory and stream of the graphs of one shape.

    Libraries keep a workspace for each stream, which a graph refers to: graphs that live longer than others must not
    share theirs.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()


class GraphedStep:
    """A step captured as one CUDA graph: a replay launches all of its kernels at once, without Python.

    What the graph gives for two steps is compared with what the same kernels give, launched one by one.

    Args:
        run: the step; reads and writes the same memory at every call.
        restart: undoes what calling `run` counted.
        place: memory and stream, shared with graphs that never run at the same time and are let go of together.

    Raises:
        ValueError: the memory is not on a CUDA device.
        RuntimeError: the graph gives something else.
    """

    def __init__(
        self, run: Callable[[], Tensor], restart: Callable[[], None], place: GraphPlace | None, device: torch.device
    ):
        if device.type != "cuda" or place is None:
            raise ValueError(f"CUDA graphs need a CUDA device, and the model is on {device}; move it with model.to().")
        with torch.cuda.device(device), _CAPTURING:
            self._capture(run, restart, place)
        restart()
        expected = [run().clone() for _ in range(2)]
        restart()
        given = [self().clone() for _ in range(2)]
        restart()
        error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(given, expected, strict=True))
        if not error < CAPTURE_TOLERANCE:
            raise RuntimeError(f"The captured step is off by {error:.2g}; set model.uses_cuda_graph = False.")

    def _capture(self, run: Callable[[], Tensor], restart: Callable[[], None], place: GraphPlace) -> None:
        stream = place.stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                restart()
                run()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, place.pool, stream, capture_error_mode="thread_local"):
            self._output = run()

    def __call__(self) -> Tensor:
        """Run the step; the same tensor every time."""
        self._graph.replay()
        return self._output


class CapturedSteps:
    """Graphs of one shape, with the memory they work on.

    Args:
        decoder: that memory.
        num_branches: guidance branches; each has the same number of rows.
        step: the model's own part of it.
    """

    def __init__(self, decoder: FixedDecoder, num_branches: int, step: DecodeStep):
        self.size, self.num_branches = decoder.size, num_branches
        self._decoder, self._step = decoder, step
        size, device = decoder.size, decoder.device
        self.batch_size = size.num_prefixes // num_branches * size.num_pictures
        self._codes_B = torch.zeros(self.batch_size, dtype=torch.long, device=device)
        self._rows_B = torch.arange(self.batch_size, device=device)  # of the pictures that are drawn
        self._place = GraphPlace(device) if device.type == "cuda" else None
        self._graphs: dict[tuple[int, int], GraphedStep] = {}
        self._num_running = num_branches
        self.seconds = 0.0

    def capture(self, num_branches: int) -> None:
        """Capture the steps of all stages with so many branches, unless that was done."""
        started = time.perf_counter()
        part = self._decoder.first(self.size.num_prefixes // self.num_branches * num_branches)
        for end in self._stage_ends():
            if (num_branches, end) not in self._graphs:
                self._graphs[num_branches, end] = self._capture_stage(part, num_branches, end)
        self.seconds += time.perf_counter() - started

    def _capture_stage(self, part: FixedDecoder, num_branches: int, end: int) -> GraphedStep:
        def run() -> Tensor:
            return self._step(self._codes_B, num_branches, lambda hidden_RD: part.step(hidden_RD, end))

        return GraphedStep(run, part.restart, self._place, self._codes_B.device)

    def _stage_ends(self) -> list[int]:
        last = self.size.num_codes
        return [min(start + STAGE, last) for start in range(0, last, STAGE)]

    def load(self, prefix: PromptPrefix, num_prompts: int, num_pictures: int) -> None:
        """Begin with the pictures of some prompts; rows that are left over draw what nobody looks at."""
        device, size = self._codes_B.device, self.size
        room = size.num_pictures if size.is_shared else num_pictures
        pictures = torch.arange(num_pictures, device=device)
        self._rows_B = (torch.arange(num_prompts, device=device)[:, None] * room + pictures).flatten()
        rows = torch.arange(self.batch_size, device=device)
        prompt_of_row = (rows // room).clamp(max=num_prompts - 1)
        branches = torch.arange(self.num_branches, device=device)
        self._decoder.load(prefix, (branches[:, None] * num_prompts + prompt_of_row).flatten())
        self._codes_B.zero_()
        self._num_running = self.num_branches

    def keep(self, num_branches: int) -> None:
        """Go on with the first branches alone."""
        self._num_running = num_branches

    def __call__(self, codes_B: Tensor, position: int) -> Tensor:
        """Codes of the pictures that were loaded, at a position -> logits (R, V) of the next ones."""
        self._codes_B[self._rows_B] = codes_B
        end = min(position // STAGE * STAGE + STAGE, self.size.num_codes)
        logits_RV = self._graphs[self._num_running, end]()
        return logits_RV.unflatten(0, (self._num_running, self.batch_size))[:, self._rows_B].flatten(0, 1)


# ------------------------------------------------------------------ what a model keeps


@dataclass(frozen=True)
class CaptureReport:
    """What `compile_generation` made ready for one batch size."""

    batch_size: int
    prompt_tokens: int  # prompts up to this long, and longer than a bucket less
    num_branches: int
    seconds: float  # compiling, warming up and capturing
    num_bytes: int  # of keys and values


class Captures:
    """The captured steps of a model: those made ahead, and the last few made on the way.

    They hold for the weights and their places in memory that they were captured with.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._ahead: list[CapturedSteps] = []
        self._on_the_way: list[CapturedSteps] = []  # the one used last comes last
        self._weights: list[tuple[int, torch.dtype]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Captures":
        """A copied model captures for itself."""
        return Captures()

    def __reduce__(self) -> Any:
        """As a copied one does one that was sent to another process."""
        return Captures, ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is captured."""
        return not self._ahead and not self._on_the_way

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds them: a callback then draws on its own."""
        return self._owner == threading.get_ident()

    @contextmanager
    def held(self, modules: list[nn.Module]) -> Iterator[None]:
        """Keep other threads out, and forget what was captured with other weights."""
        if self.is_mine:
            raise RuntimeError("A callback cannot compile, release or move what draws; do it after the drawing.")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                weights = [(p.data_ptr(), p.dtype) for module in modules for p in module.parameters()]
                if weights != self._weights:
                    self.clear()
                    self._weights = weights
                yield
            finally:
                self._owner = None

    def clear(self) -> None:
        """Let go of all graphs and their memory."""
        self._ahead, self._on_the_way = [], []

    def find(self, size: CacheSize, num_branches: int) -> CapturedSteps | None:
        """The smallest with room for this; of those captured on the way, one that is not far too large."""
        near = [steps for steps in self._on_the_way if steps.size.num_tokens <= MAX_WASTE * size.num_tokens]
        fitting = [steps for steps in (*self._ahead, *near) if _has_room(steps, size, num_branches)]
        found = min(fitting, key=lambda steps: steps.size.num_tokens, default=None)
        if found in self._on_the_way:
            self._on_the_way.remove(found)
            self._on_the_way.append(found)
        return found

    def has_ahead(self, size: CacheSize, num_branches: int) -> bool:
        """Whether exactly this was captured ahead."""
        return any(steps.size == size and steps.num_branches == num_branches for steps in self._ahead)

    def make_room(self, num_kept: int = KEPT_SHAPES - 1) -> None:
        """Let go of what was captured on the way, but for the shapes that were used last."""
        del self._on_the_way[: max(0, len(self._on_the_way) - num_kept)]

    def add(self, steps: CapturedSteps, is_ahead: bool) -> None:
        """Keep it: for good, or until others were used."""
        (self._ahead if is_ahead else self._on_the_way).append(steps)


def _has_room(steps: CapturedSteps, size: CacheSize, num_branches: int) -> bool:
    """Prompts may be shorter; where a prompt is shared, there may be more pictures of each; otherwise, more rows."""
    has = steps.size
    if steps.num_branches != num_branches or has.is_shared != size.is_shared or has.prefix_length < size.prefix_length:
        return False
    if has.is_shared:
        return has.num_prefixes == size.num_prefixes and has.num_pictures >= size.num_pictures
    return has.num_prefixes >= size.num_prefixes


__all__ = ["CaptureReport", "Captures"]
