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
from torch.nn.functional import pad

_LOWER_HALF = 2**64 - 1
"""Of a key of 128 bits."""


def uniforms(seeds: Sequence[int], num_tokens: int) -> np.ndarray:
    """Uniforms in [0, 1), float64 of shape [len(seeds), num_tokens]; row i is a function of seeds[i] alone.

    Philox keyed by the seed [Salmon et al. 2011]; one generator is set to each key, which is faster than to make them.
    """
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    uniforms_BT = np.empty((len(seeds), num_tokens))
    for seed, row_T in zip(seeds, uniforms_BT, strict=True):
        state["state"]["key"][:] = seed & _LOWER_HALF, seed >> 64
        philox.state = state
        generator.random(out=row_T)
    return uniforms_BT


def response_seed(*parts: int | str) -> int:
    """A 64-bit seed that depends on every part: the purpose, the run's seed, the prompt, the round."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def draw(logits_BV: Float[Tensor, "B V"], uniforms_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The smallest token whose cumulative probability exceeds the uniform: exact sampling from softmax(logits).

    Searched on two levels, first among about √V blocks and then within one, so that V probabilities are passed over
    once for their softmax and once for the blocks' sums. Cumulative sums are in float64 (in float32 they would lose the
    tail of a large vocabulary); a block's own sum has the rounding of the probabilities. A token of probability 0 is
    never drawn.
    """
    p_BV = logits_BV.softmax(dim=-1)
    block = 1 << logits_BV.shape[-1].bit_length() // 2
    if p_BV.shape[-1] % block:
        p_BV = pad(p_BV, (0, block - p_BV.shape[-1] % block))
    blocks_BKW = p_BV.view(len(p_BV), -1, block)
    mass_BK = blocks_BKW.sum(dim=-1)
    block_B1, cumulative_BK, threshold_B1 = _inverse_cdf(mass_BK, uniforms_B.to(p_BV.device).unsqueeze(-1))
    # where in its block a threshold lies, again as a uniform in [0, 1)
    mass_B1 = mass_BK.gather(-1, block_B1).double()
    place_B1 = (threshold_B1 - cumulative_BK.gather(-1, block_B1) + mass_B1) / mass_B1
    rows_B = torch.arange(len(p_BV), device=p_BV.device)
    within_B1, _, _ = _inverse_cdf(blocks_BKW[rows_B, block_B1.squeeze(-1)], place_B1)
    return block_B1.mul_(block).add_(within_B1).squeeze(-1)


def _inverse_cdf(mass_BK: Tensor, uniforms_B1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cell that each uniform falls into, the cumulative masses, and the one that the uniform stands for."""
    cumulative_BK = mass_BK.cumsum(dim=-1, dtype=torch.float64)
    total_B1 = cumulative_BK[:, -1:].contiguous()
    threshold_B1 = uniforms_B1 * total_B1
    cell_B1 = torch.searchsorted(cumulative_BK, threshold_B1, right=True)
    # rounding may lift the threshold to the total: then the last cell that has mass
    return torch.minimum(cell_B1, torch.searchsorted(cumulative_BK, total_B1)), cumulative_BK, threshold_B1


def until_end(row: Sequence[int], eos_token_id: int) -> tuple[int, ...]:
    """The tokens up to and including the first end-of-sequence token; all of them when there is none."""
    end = row.index(eos_token_id) + 1 if eos_token_id in row else len(row)
    return tuple(row[:end])
