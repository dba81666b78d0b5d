"""Locality-sensitive hashing of queries: vectors of like direction fall into one bucket.

Letters: R rounds, F columns of a rotation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.visibility import Seen, check_inputs
from proteinlm.randomness import stream

# buckets of one rotation; more are the pairs of two rotations' buckets
MOST_BUCKETS = 128
# projections of one tile, all heads and rounds: 1 MiB in float32
TILE_ELEMENTS = 2**18


def rotations(num_rounds: int, head_dim: int, *, seed: int, layer: int, draw: int) -> Tensor:
    """Return Gaussian rotations_R2KF, two factors a round, as float64 on the CPU.

    A pure function of its arguments; round r is the same whatever ``num_rounds``. Buckets of fewer columns
    use the first ones.

    Returns:
        rotations_R2KF with R = ``num_rounds``, K = ``head_dim`` and F = ``MOST_BUCKETS`` / 2.
    """
    sizes = (2, head_dim, MOST_BUCKETS // 2)
    drawn = [stream(seed, "lsh", layer, draw, r).standard_normal(sizes) for r in range(num_rounds)]
    return torch.from_numpy(np.stack(drawn))


def bucket_factors(num_visible: int, chunk_length: int, num_buckets: int = 0) -> tuple[int, int]:
    """Return how many buckets each of the two rotations makes for a segment, even numbers or 1.

    About as many buckets as chunks, so that a bucket fills about one; at most ``MOST_BUCKETS`` squared.

    Args:
        num_visible: visible positions of the segment.
        num_buckets: wanted number, 0 for that of the length.
    """
    wanted = num_buckets or max(2, 2 * math.ceil(num_visible / (2 * chunk_length)))
    if wanted <= MOST_BUCKETS:
        return wanted, 1
    first = min(MOST_BUCKETS, 2 * round(math.sqrt(wanted) / 2))
    return first, min(MOST_BUCKETS, 2 * math.ceil(wanted / (2 * first)))


@torch.no_grad()
def hash_buckets(
    q_BLHK: Tensor, rotations_R2KF: Tensor, chunk_length: int, *, num_buckets: int = 0, **seen: Unpack[Seen]
) -> Tensor:
    """Return the bucket of every query (B, L, H, K) in every round.

    h(x) = argmax([x R; -x R]); of two rotations with n and m buckets h = h1 + n h2. The number of buckets is
    that of a query's own segment (see ``bucket_factors``). The length of x does not matter.

    Args:
        rotations_R2KF: see ``rotations``.
        num_buckets: of every segment; 0 for about one a chunk.
        seen: see ``Visibility``.

    Returns:
        buckets_BLHR, int16. What a hidden position gets means nothing.

    Raises:
        ShapeError: if the arguments do not fit together, as if queries and rotations disagree on K.

    Source: Andoni et al., NeurIPS 2015, arXiv:1509.02897, as in Kitaev et al., ICLR 2020, arXiv:2001.04451.
    """
    visibility = check_inputs(q_BLHK, **seen)
    num_heads, head_dim = q_BLHK.shape[2:]
    if rotations_R2KF.ndim != 4 or rotations_R2KF.shape[1:3] != (2, head_dim):
        raise ShapeError(f"rotations are {tuple(rotations_R2KF.shape)}; expected (R, 2, {head_dim}, F)")
    device, q_THK, dtype = q_BLHK.device, q_BLHK.flatten(0, 1), accumulation_dtype(q_BLHK)
    factors = [bucket_factors(segment.num_visible, chunk_length, num_buckets) for segment in visibility.segments]
    lengths = [len(segment) for segment in visibility.segments]

    def make() -> Tensor:
        # whole numbers also where there is no segment
        factors_S2, lengths_S = (torch.tensor(x, dtype=torch.int64, device=device) for x in (factors, lengths))
        return factors_S2.view(-1, 2).repeat_interleave(lengths_S, 0)

    factors_T2 = visibility.plan(("bucket factors", chunk_length, num_buckets, device), make)
    rotations_R2KF = rotations_R2KF.to(device, dtype)
    buckets_THR = torch.empty(*q_THK.shape[:2], len(rotations_R2KF), dtype=torch.int16, device=device)
    widest = max((most for most, _ in factors), default=2) // 2
    step = max(1, TILE_ELEMENTS // (num_heads * len(rotations_R2KF) * widest))
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(q_THK), step):
            part = slice(start, start + step)
            buckets_THR[part] = _hash(q_THK[part].to(dtype), rotations_R2KF, factors_T2[part], factors)
    return buckets_THR.view(*q_BLHK.shape[:2], *buckets_THR.shape[1:])


def _hash(x_THK: Tensor, rotations_R2KF: Tensor, factors_T2: Tensor, factors: Sequence[tuple[int, int]]) -> Tensor:
    first_THR = _rotate(x_THK, rotations_R2KF[:, 0], factors_T2[:, 0], {a for a, _ in factors})
    if all(b == 1 for _, b in factors):
        return first_THR
    second_THR = _rotate(x_THK, rotations_R2KF[:, 1], factors_T2[:, 1], {b for _, b in factors})
    return first_THR + factors_T2[:, :1, None] * second_THR


def _rotate(x_THK: Tensor, rotations_RKF: Tensor, num_buckets_T: Tensor, numbers: set[int]) -> Tensor:
    """Return argmax([x R; -x R]) over the columns that each position uses; 0 for one bucket."""
    widest = max(1, max(numbers) // 2)
    columns_KG = rotations_RKF[..., :widest].permute(1, 0, 2).flatten(1)
    projected_THRF = (x_THK @ columns_KG).view(*x_THK.shape[:2], len(rotations_RKF), widest)
    sizes_THRF = projected_THRF.abs()
    half_T = num_buckets_T // 2
    if len(numbers) > 1:
        unused_TF = torch.arange(widest, device=x_THK.device) >= half_T[:, None].clamp_min(1)
        sizes_THRF.masked_fill_(unused_TF[:, None, None], -1)
    best_THR1 = sizes_THRF.max(-1, keepdim=True).indices
    is_negative_THR = projected_THRF.gather(-1, best_THR1)[..., 0] < 0
    return best_THR1[..., 0] + is_negative_THR * half_T[:, None, None]
