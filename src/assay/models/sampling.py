"""Drawing tokens: one uniform for each row and position, turned into a token by the inverse CDF.

The uniforms of a row come from a counter-based generator keyed by the row's own seed, so a response does
not depend on the batch that it is drawn in, nor on the machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniforms(seeds: Sequence[int], num_tokens: int) -> np.ndarray:
    """Uniforms in [0, 1), float64 of shape [len(seeds), num_tokens]; row i is a function of seeds[i] alone.

    Philox keyed by the seed [Salmon et al. 2011].
    """
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(num_tokens) for seed in seeds])


def response_seed(*parts: int | str) -> int:
    """A 64-bit seed that depends on every part: the purpose, the run's seed, the prompt, the round."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw(log_p_BV: Float[Tensor, "B V"], uniforms_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The smallest token whose cumulative probability exceeds the uniform: exact sampling, one pass over V.

    Probabilities are summed in float64 (a float32 sum over a large vocabulary loses the tail).
    """
    cumulative_BV = log_p_BV.double().exp().cumsum(dim=-1)
    threshold_B1 = uniforms_B.to(cumulative_BV).unsqueeze(-1) * cumulative_BV[:, -1:]
    token_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
    return token_B.clamp_(max=log_p_BV.shape[-1] - 1)


def until_end(row: Sequence[int], eos_token_id: int) -> tuple[int, ...]:
    """The tokens up to and including the first end-of-sequence token; all of them when there is none."""
    end = row.index(eos_token_id) + 1 if eos_token_id in row else len(row)
    return tuple(row[:end])
