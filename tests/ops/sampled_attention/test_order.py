from __future__ import annotations

import torch

from proteinlm.ops.sampled_attention.order import CODE_BITS, gray_ranks, hash_orders, hash_planes

PLANES = hash_planes(5, seed=0, layer=0, draw=0)


def test_neighbouring_ranks_differ_in_the_sign_of_one_projection():
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 5)
    ranks = gray_ranks(signs[:, None], torch.eye(5))[:, 0]
    assert ranks.sort().values.tolist() == list(range(32))
    assert ((signs[ranks.argsort()].diff(dim=0) != 0).sum(1) == 1).all()


def test_only_directions_count():
    x = torch.randn(40, 2, 5, dtype=torch.float64)
    lengths = torch.rand(40, 2, 1, dtype=torch.float64) + 0.1
    assert torch.equal(gray_ranks(x * lengths, PLANES), gray_ranks(x, PLANES))


def test_what_is_alike_as_query_and_as_key_has_one_rank():
    x = torch.randn(1, 40, 2, 5)
    queries, keys = hash_orders(x, 7 * x, PLANES)
    assert torch.equal(queries, keys)


def test_an_order_is_a_permutation_of_each_segment_with_visible_positions_first(layout):
    q, k, _ = layout.draw(3, 5, requires_grad=False)
    orders = hash_orders(q, k, PLANES, **layout.options)
    num_positions = layout.num_windows * layout.length
    assert orders.dtype == torch.int32
    assert (orders.sort(-1).values == torch.arange(num_positions)).all()
    ends = torch.arange(0, num_positions + 1, layout.length) if layout.cu_seqlens is None else layout.cu_seqlens
    segment = torch.searchsorted(ends.long(), torch.arange(num_positions), right=True)
    assert (segment[orders.long()] == segment).all()
    if layout.key_mask_BL is not None:
        hidden = (~layout.key_mask_BL).flatten().long()[orders.long()]
        assert ((segment * 2 + hidden).diff(dim=-1) >= 0).all()


def test_planes_depend_on_seed_layer_and_draw_and_on_nothing_else():
    assert PLANES.shape == (CODE_BITS, 5)
    assert torch.equal(hash_planes(5, seed=0, layer=0, draw=0), PLANES)
    for other in ({"seed": 1}, {"layer": 1}, {"draw": 1}):
        assert not torch.equal(hash_planes(5, **{"seed": 0, "layer": 0, "draw": 0} | other), PLANES)
