"""Computes the frequencies of rotary positions, scaled where a model reads farther than it was trained for.

| kind   | what it does to the frequency of each pair                                             | source            |
|--------|-----------------------------------------------------------------------------------------|-------------------|
| linear | divides all by `factor`                                                                 | arXiv:2306.15595  |
| ntk    | raises theta by factor^(E/(E-2)): the slowest is divided by `factor`, the fastest kept  | bloc97, 2023      |
| yarn   | divides those with few turns in the old context, keeps those with many; hotter softmax  | arXiv:2309.00071  |
| llama3 | divides long wavelengths, keeps short ones, blends between                              | Llama 3.1, 2024   |

Equal to `transformers` for each (tests/reference).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from configs.schema.model import Model, RopeScaling


def frequencies(config: Model, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Angle per position of each pair, fp32 (E/2,), and the factor that cos and sin are multiplied by (yarn)."""
    scaling, theta = config.rope_scaling, rope_base(config)
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.float32, device=device) / config.head_width
    plain = 1.0 / (theta**exponent)  # (E/2,)
    if scaling is None or scaling.kind == "ntk":
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    keep = _yarn_share(config.head_width, theta, scaling).to(plain.device)
    temperature = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    return plain / scaling.factor * (1 - keep) + plain * keep, temperature


def rope_base(config: Model) -> float:
    """Theta, with `ntk` scaling in it: a model scaled so is an ordinary one with this base."""
    scaling, width = config.rope_scaling, config.head_width
    if scaling is None or scaling.kind != "ntk":
        return config.rope_theta
    return float(config.rope_theta * scaling.factor ** (width / (width - 2)))


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    assert scaling.original_context_length
    wavelength, old = 2 * math.pi / plain, scaling.original_context_length
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((old / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * plain / scaling.factor + keep * plain


def _yarn_share(width: int, theta: float, scaling: RopeScaling) -> Tensor:
    """(E/2,): the share of each frequency that stays as it is, from 0 to 1, a ramp over the pairs."""
    assert scaling.original_context_length
    old = scaling.original_context_length

    def pair(turns: float) -> float:
        """The pair that makes so many turns within the old context."""
        return width * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(width // 2, dtype=torch.float32) - first) / ((last - first) or 0.001)
    return 1 - ramp.clamp(0, 1)
