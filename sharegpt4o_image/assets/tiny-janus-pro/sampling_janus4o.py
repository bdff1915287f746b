# SPDX-License-Identifier: Apache-2.0
"""One step's logits -> one code a picture: guidance (paper section 2), warpers, and a random generator a picture."""

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

# B pictures, V codes

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True)
class Guidance:
    """How the branches' logits become one distribution (paper section 2).

    With `cond` = l_c, `part` = l_o (source codes masked) and `uncond` = l_u (everything masked):

        l_c' = (l_c + s' l_o) / (1 + s')
        l    = l_u + s (l_c' - l_u)
    """

    scale: float  # s
    edit_freedom: float  # s'
    until: float = 1.0  # share of the codes that are guided

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"guidance_until is {self.until}; it must be above 0 and at most 1.")
        for name, value in (("guidance_scale", self.scale), ("edit_freedom", self.edit_freedom)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be 0 or more.")

    def guide(self, logits: dict[str, Tensor]) -> Tensor:
        """Logits (B, V) of each branch -> guided logits (B, V)."""
        if "cond" not in logits:
            return logits["uncond"]
        conditional = logits["cond"]
        if "part" in logits:
            conditional = (conditional + self.edit_freedom * logits["part"]) / (1 + self.edit_freedom)
        if "uncond" not in logits:
            return conditional
        return logits["uncond"] + self.scale * (conditional - logits["uncond"])

    def num_guided(self, branches: tuple[str, ...], num_codes: int) -> int:
        """How many codes are drawn with all branches; the later ones do without `uncond`."""
        has_rest = branches[0] == "cond" and branches[-1] == "uncond"
        return math.ceil(self.until * num_codes) if has_rest else num_codes


class CodeSampler:
    """Draws one code a picture from guided logits, each picture from its own random generator."""

    def __init__(
        self,
        num_pictures: int,
        warpers: LogitsProcessorList | None,
        generator: Generators | None,
        device: torch.device,
    ):
        self._warpers = warpers
        given = [generator] if isinstance(generator, torch.Generator) else generator
        if given is not None and not all(isinstance(one, torch.Generator) for one in _as_list(given)):
            raise ValueError("generator is no torch.Generator; give torch.Generator().manual_seed(seed), or a list.")
        if given is not None and len(given) not in (1, num_pictures):
            raise ValueError(f"Got {len(given)} generators for {num_pictures} pictures; give one, or one for each.")
        self._generators = _picture_generators(given, num_pictures, device)

    def of(self, pictures: list[int]) -> "CodeSampler":
        """The sampler of some of the pictures; each keeps its generator."""
        part = copy(self)
        part._generators = [self._generators[number] for number in pictures]
        return part

    def sample_token(self, logits_BV: Tensor) -> Tensor:
        """Codes (B,): the most likely ones without sampling, else one draw from each row's softmax."""
        if self._warpers is None:
            return logits_BV.argmax(-1)
        probabilities_BV = self._warpers(None, logits_BV).softmax(-1)
        # argmax p / e with e ~ Exp(1) draws from p, and each row needs only its own generator.
        noise_BV = torch.stack([torch.empty_like(logits_BV[0]).exponential_(generator=g) for g in self._generators])
        return (probabilities_BV / noise_BV).argmax(-1)


def _picture_generators(
    given: list[torch.Generator] | None, num_pictures: int, device: torch.device
) -> list[torch.Generator]:
    """One generator a picture on `device`, seeded by draws from the given ones (or from torch's default)."""
    if given is None or len(given) == 1:
        source = given[0] if given else None
        seeds = [_draw_seed(source) for _ in range(num_pictures)]
    else:
        seeds = [_draw_seed(source) for source in given]
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**62, (), generator=generator, device=device))


def sampling_warpers(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """transformers' own warpers, in its order; none of them unless asked for."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; it must be above 0 (do_sample=False takes the likeliest).")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k is {top_k}; it must be 1 or more (0 or None: among all codes).")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


__all__ = ["CodeSampler", "Guidance", "sampling_warpers"]
