"""Scatterbrain attention, some segments and heads at a time.

Letters as in ``blocks``. A position here is one of B·L·H rows, each of one head, as orders differ from head to head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.derivatives import refuse_second_derivative
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features.features import check_rows
from proteinlm.ops.sampled_attention.blocks import Sizes, alike, block_sizes
from proteinlm.ops.sampled_attention.order import check_orders
from proteinlm.ops.scatterbrain_attention.blocks import (
    Keys,
    attend_blocks,
    outside_weights,
    query_weights,
    read_keys,
)
from proteinlm.ops.visibility import Seen, check_inputs

# numbers of one group: 4 MiB in float32, unless one head of one segment has more
GROUP_ELEMENTS = 2**20


def scatterbrain_attention(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    rows_MK: Tensor,
    orders_2HT: Tensor,
    *,
    block_length: int,
    **seen: Unpack[Seen],
) -> Tensor:
    """Return attention of q, k, v (B, L, H, K): exact inside blocks of a hash, by positive features between them.

    out_i = sum_j w_ij v_j / sum_j w_ij, where w_ij is exp(q_i·k_j / sqrt(K)) for the keys of block b, i being in block
    b of the queries, and phi(x_i)·phi(y_j) for all others (see ``blocks``). Numerator and normaliser are unbiased over
    rows that are N(0, I) each. Exactly 0, with zero gradients, where no key is visible. Time O(L (M + block) K); memory
    O(L K) a head and, for one head of one segment at a time, O(L (M + block + M K / block)), forward and backward.
    Features and sums are float32 for any input but float64, also under autocast. Gradients run through weights and
    values; order and rows are constants.

    Args:
        rows_MK: one row for each feature (``feature_rows``).
        orders_2HT: what ``hash_orders`` returns.
        block_length: visible positions of a block, at most.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if a causal form is asked for.

    Source: Chen et al., NeurIPS 2021, arXiv:2110.15343, equation 5, with features of FAVOR+.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, bidirectional_only="Scatterbrain", **seen)
    check_rows(rows_MK, q_BLHK.shape[-1])
    check_orders(orders_2HT, q_BLHK)
    groups = list(_groups(block_sizes(visibility.segments, block_length), orders_2HT, *rows_MK.shape))
    rows = (x.flatten(0, 2) for x in (visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK))
    out_NK: Tensor = _Scatterbrain.apply(*rows, rows_MK, orders_2HT, groups)  # type: ignore[no-untyped-call]
    return out_NK.view_as(v_BLHK)


class Group(NamedTuple):
    """Heads of segments of about equal sizes: int64 (U,) each."""

    sizes: Sizes
    head: Tensor

    def blocks(self, order_HT: Tensor, counts_U: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of each block as positions_UBC, and which are no repetition."""
        size_U = self.sizes.block
        num_blocks = int((-(-counts_U // size_U)).max())
        steps_C = torch.arange(int(size_U.max()), device=order_HT.device)
        ranks_UBC = torch.arange(num_blocks, device=order_HT.device)[:, None] * size_U[:, None, None] + steps_C
        real_UBC = (steps_C < size_U[:, None, None]) & (ranks_UBC < counts_U[:, None, None])
        ranks_UBC = torch.minimum(ranks_UBC, counts_U[:, None, None] - 1) + self.sizes.start[:, None, None]
        head_U11 = self.head[:, None, None]
        return order_HT[head_U11, ranks_UBC].long() * len(order_HT) + head_U11, real_UBC

    def key_blocks(self, num_query_blocks: int) -> Tensor | None:
        """Return the block of keys that each block of queries sees; None: each its own."""
        if torch.equal(self.sizes.length, self.sizes.num_visible):
            return None
        return torch.arange(num_query_blocks, device=self.head.device) % self.sizes.num_blocks[:, None]


def _groups(sizes: Sizes, orders_2HT: Tensor, num_features: int, head_dim: int) -> Iterator[Group]:
    device, num_heads = orders_2HT.device, orders_2HT.shape[1]
    shape = torch.stack((sizes.block, -(-sizes.length // sizes.block)))
    for members in alike(shape):
        block, num_blocks = (int(x.max()) for x in shape[:, members[:, 0]])
        most = num_blocks * (block * (2 * num_features + block) + num_features * head_dim)
        units = (members * num_heads + torch.arange(num_heads)).flatten()
        for ids in torch.split(units, max(1, GROUP_ELEMENTS // most)):
            yield Group(Sizes(*(field[ids // num_heads].to(device) for field in sizes)), (ids % num_heads).to(device))


class _Scatterbrain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_NK: Tensor,
        k_NK: Tensor,
        v_NK: Tensor,
        rows_MK: Tensor,
        orders_2HT: Tensor,
        groups: Sequence[Group],
    ) -> Tensor:
        out_NK = torch.zeros_like(v_NK)
        with torch.autocast(q_NK.device.type, enabled=False):
            for group in groups:
                inputs, places = _gather(group, (q_NK, k_NK, v_NK), orders_2HT)
                out_UACK = _attend(group, inputs, places, rows_MK)
                real_UAC = places[1]
                out_NK[places[0][real_UAC]] = out_UACK[real_UAC].to(out_NK.dtype)
        ctx.groups = groups
        ctx.save_for_backward(q_NK, k_NK, v_NK, rows_MK, orders_2HT)
        return out_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("scatterbrain attention")
        *inputs, rows_MK, orders_2HT = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in inputs]
        with torch.autocast(grad_NK.device.type, enabled=False):
            for group in ctx.groups:
                leaves, places = _gather(group, inputs, orders_2HT)
                query_rows, real_UAC, key_rows, hidden_UBC = places
                with torch.enable_grad():
                    leaves = [x.requires_grad_() for x in leaves]
                    out_UACK = _attend(group, leaves, places, rows_MK)
                grad_UACK = (grad_NK[query_rows] * real_UAC[..., None]).to(out_UACK.dtype)
                found = torch.autograd.grad(out_UACK, leaves, grad_UACK)
                wheres = ((query_rows, real_UAC), (key_rows, ~hidden_UBC), (key_rows, ~hidden_UBC))
                for grad, x, (rows, real) in zip(grads, found, wheres, strict=True):
                    grad[rows[real]] = x[real].to(grad.dtype)
        needed = zip(grads, ctx.needs_input_grad, strict=False)
        return *(grad if wanted else None for grad, wanted in needed), None, None, None


Places = tuple[Tensor, Tensor, Tensor, Tensor]


def _gather(group: Group, inputs: Sequence[Tensor], orders_2HT: Tensor) -> tuple[list[Tensor], Places]:
    """Return q_UACK, k_UBCK, v_UBCK, and the rows of queries, which are real, the rows of keys, which are hidden."""
    dtype = accumulation_dtype(*inputs)
    query_rows, real_UAC = group.blocks(orders_2HT[0], group.sizes.length)
    key_rows, real_UBC = group.blocks(orders_2HT[1], group.sizes.num_visible)
    rows = (query_rows, key_rows, key_rows)
    taken = [x.index_select(0, i.flatten()).view(*i.shape, -1).to(dtype) for x, i in zip(inputs, rows, strict=False)]
    return taken, (query_rows, real_UAC, key_rows, ~real_UBC)


def _attend(group: Group, inputs: Sequence[Tensor], places: Places, rows_MK: Tensor) -> Tensor:
    q_UACK, k_UBCK, v_UBCK = inputs
    rows_MK = rows_MK.to(q_UACK.device, q_UACK.dtype)
    keys = _for_queries(group, read_keys(k_UBCK, v_UBCK, places[3], rows_MK), q_UACK.shape[1])
    return attend_blocks(q_UACK, keys, rows_MK)


def _for_queries(group: Group, keys: Keys, num_query_blocks: int) -> Keys:
    """Return keys with a block for each block of queries."""
    index_UA = group.key_blocks(num_query_blocks)
    if index_UA is None:
        return keys
    unit_U1 = torch.arange(len(index_UA), device=index_UA.device)[:, None]
    return Keys(*(field[unit_U1, index_UA] for field in keys))


@torch.no_grad()
def scatterbrain_map(
    q_BLHK: Tensor,
    k_BLHK: Tensor,
    rows_MK: Tensor,
    orders_2HT: Tensor,
    *,
    block_length: int,
    rows: slice = slice(None),
    **seen: Unpack[Seen],
) -> Tensor:
    """Return the weights of ``scatterbrain_attention`` for some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is visible
        and are 0 elsewhere.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, bidirectional_only="Scatterbrain", **seen)
    check_rows(rows_MK, q_BLHK.shape[-1])
    check_orders(orders_2HT, q_BLHK)
    blank, length = BlankMap(visibility, rows, q_BLHK, k_BLHK), visibility.length
    inputs = [x.flatten(0, 2) for x in (visibility.finite_queries(q_BLHK), k_BLHK)]
    with torch.autocast(q_BLHK.device.type, enabled=False):
        for group in _groups(block_sizes(visibility.segments, block_length), orders_2HT, *rows_MK.shape):
            for unit, head in enumerate(group.head.tolist()):
                one = slice(unit, unit + 1)
                alone = Group(Sizes(*(field[one] for field in group.sizes)), group.head[one])
                window = int(alone.sizes.start) // length
                corner = (window * length + blank.first, length)
                _map_unit(blank.map_BHRL[window, head], alone, inputs, orders_2HT, rows_MK, corner)
    return blank.map_BHRL


def _map_unit(
    map_RL: Tensor,
    unit: Group,
    inputs: Sequence[Tensor],
    orders_2HT: Tensor,
    rows_MK: Tensor,
    corner: tuple[int, int],
) -> None:
    """Fill in the rows of one head of one segment; ``corner`` is the first position wanted and L."""
    (q_UACK, k_UBCK), (query_rows, real_UAC, key_rows, hidden_UBC) = _gather(unit, inputs, orders_2HT)
    rows_MK = rows_MK.to(q_UACK.device, q_UACK.dtype)
    read = read_keys(k_UBCK, k_UBCK[..., :0], hidden_UBC, rows_MK)
    keys = _for_queries(unit, read, q_UACK.shape[1])
    of_features_UACM, of_keys_UACC = query_weights(q_UACK, keys, rows_MK)
    num_heads, (origin, length) = orders_2HT.shape[1], corner
    row_AC = query_rows[0] // num_heads - origin
    block_N, place_N = (real_UAC[0] & (row_AC >= 0) & (row_AC < len(map_RL))).nonzero(as_tuple=True)
    visible_BC = ~hidden_UBC[0]
    position_BC = key_rows[0] // num_heads % length
    outside_NJ = outside_weights(
        of_features_UACM[0, block_N, place_N], keys.sums_UBM[0, block_N], read.logarithms_UBCM[0][visible_BC]
    )
    own_N = block_N % len(position_BC)
    outside_NJ.masked_fill_(own_N[:, None] == visible_BC.nonzero()[:, 0], 0)
    wanted_N1 = row_AC[block_N, place_N][:, None]
    map_RL[wanted_N1, position_BC[visible_BC]] = outside_NJ.to(map_RL.dtype)
    own_NC = of_keys_UACC[0, block_N, place_N]
    map_RL.index_put_((wanted_N1, position_BC[own_N]), own_NC, accumulate=True)
