"""The order into which a hash of directions brings queries and, apart from them, keys.

The hash of x is the signs of ``CODE_BITS`` random projections, read as a Gray code: neighbours in the order differ in
one sign. Blocks are matched by rank, and where clusters have more queries than keys the ranks drift apart; in
this order the block beside the right one is nearly as good, while cross-polytope bucket numbers of
neighbours have nothing to do with each other. Only directions count: queries may be longer than keys.

Source: Han et al., ICLR 2024, arXiv:2310.05869, definition 1.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from proteinlm.errors import ShapeError
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.visibility import Seen, check_inputs
from proteinlm.randomness import stream

# finer than blocks of any length that fits a machine; float32 holds such numbers exactly
CODE_BITS = 16


def hash_planes(head_dim: int, *, seed: int, layer: int, draw: int) -> Tensor:
    """Return the random projections planes_NK as float64 on the CPU, a pure function of the arguments."""
    drawn = stream(seed, "lsh", layer, draw, 0).standard_normal((CODE_BITS, head_dim))
    return torch.from_numpy(drawn)


def gray_ranks(x_THK: Tensor, planes_NK: Tensor) -> Tensor:
    """Return ranks_TH, int64 below 2^N: where the signs of the projections stand in the Gray code."""
    dtype = accumulation_dtype(x_THK)
    with torch.autocast(x_THK.device.type, enabled=False):
        signs_THN = (x_THK.to(dtype) @ planes_NK.to(x_THK.device, dtype).T > 0).to(dtype)
        places_N = 2.0 ** torch.arange(len(planes_NK) - 1, -1, -1, device=x_THK.device, dtype=dtype)
        ranks_TH = (signs_THN @ places_N).long()
    shift = 1
    while shift < len(planes_NK):
        ranks_TH ^= ranks_TH >> shift
        shift *= 2
    return ranks_TH


@torch.no_grad()
def hash_orders(q_BLHK: Tensor, k_BLHK: Tensor, planes_NK: Tensor, **seen: Unpack[Seen]) -> Tensor:
    """Return orders_2HT, int32: the positions of q and of k (B, L, H, K) in the order of the hash, for each head.

    A segment keeps its place. In it visible positions come first, ties and hidden ones by position, so that
    neither padding nor neighbours move a visible one.

    Args:
        planes_NK: see ``hash_planes``.
        seen: see ``Visibility``.

    Raises:
        ShapeError: if the arguments do not fit together.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, **seen)
    segment_T, mask_T = visibility.segment_numbers(q_BLHK.device).flatten(), visibility.mask_T
    orders = []
    for x_BLHK in (q_BLHK, k_BLHK):
        ranks_TH = gray_ranks(x_BLHK.detach().flatten(0, 1), planes_NK)
        if mask_T is not None:
            ranks_TH.masked_fill_(~mask_T[:, None], 2 ** len(planes_NK))
        keys_HT = (segment_T * 2 ** (len(planes_NK) + 1) + ranks_TH.T).contiguous()
        orders.append(keys_HT.sort(dim=-1, stable=True).indices.int())
    return torch.stack(orders)


def check_orders(orders_2HT: Tensor, q_BLHK: Tensor) -> None:
    """Check that there is an order of all positions for each head, of queries and of keys.

    Raises:
        ShapeError: if there is not.
    """
    expected = (2, q_BLHK.shape[2], q_BLHK.shape[0] * q_BLHK.shape[1])
    if orders_2HT.shape != expected or orders_2HT.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"orders are {orders_2HT.dtype} {tuple(orders_2HT.shape)}; expected int32 {expected}")
