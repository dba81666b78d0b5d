from __future__ import annotations

import math

import pytest
import torch

from proteinlm.ops.random_features import favor_attention, projection_rows
from proteinlm.ops.sampled_attention import BlockSampling, hash_orders, hash_planes, sampled_attention
from proteinlm.ops.scatterbrain_attention import eager, reference, scatterbrain_attention, scatterbrain_map
from proteinlm.ops.scatterbrain_attention.blocks import FAMILY, exclusive_sum
from proteinlm.ops.softmax_attention import softmax_attention

HEADS, HEAD_DIM = 3, 5


def draw_rows(num_rows: int, head_dim: int, index: int = 0) -> torch.Tensor:
    return projection_rows(num_rows, head_dim, projection="orthogonal", seed=0, layer=0, redraw_index=index)


ROWS = draw_rows(7, HEAD_DIM)


def attend(q, k, v, rows, block_length, **options):
    """Attend in the order of the hash of draw 0."""
    orders = hash_orders(q, k, hash_planes(q.shape[-1], seed=0, layer=0, draw=0), **options)
    return scatterbrain_attention(q, k, v, rows, orders, block_length=block_length, **options)


@pytest.fixture
def orders(layout):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    return hash_orders(q, k, hash_planes(HEAD_DIM, seed=0, layer=0, draw=0), **layout.options)


@pytest.fixture(params=[2**20, 1], ids=["large groups", "single heads"])
def _groups(request, monkeypatch):
    """Let many heads and segments share a group, or none."""
    monkeypatch.setattr(eager, "GROUP_ELEMENTS", request.param)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("_groups")
@pytest.mark.parametrize("block_length", [1, 3, 8, 64])
def test_value_and_gradients_equal_the_reference(layout, orders, block_length):
    inputs = layout.draw(HEADS, HEAD_DIM)
    weights = torch.randn(inputs[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    results = []
    for attention in (scatterbrain_attention, reference.scatterbrain_attention):
        out = attention(*inputs, ROWS, orders, block_length=block_length, **layout.options)
        results.append([out, *torch.autograd.grad(out, inputs, weights)])
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("heads", [slice(None), slice(1, 3)], ids=["all heads", "some heads"])
@pytest.mark.parametrize("part", [slice(None), slice(2, 30), slice(0, 0)], ids=["all", "block", "none"])
@pytest.mark.parametrize("block_length", [1, 8, 64])
def test_map_equals_the_reference(layout, orders, block_length, part, heads):
    q, k, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    settings = {"block_length": block_length, **layout.options}
    expected = reference.scatterbrain_map(q, k, ROWS, orders, **settings)[:, heads, part]
    got = scatterbrain_map(q[:, :, heads], k[:, :, heads], ROWS, orders[:, heads], rows=part, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_a_block_that_holds_all_keys_is_exact_attention(layout, orders):
    inputs = layout.draw(HEADS, HEAD_DIM)
    got = scatterbrain_attention(*inputs, ROWS, orders, block_length=64, **layout.options)
    torch.testing.assert_close(got, softmax_attention(*inputs, **layout.options), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 127, 128, 129, 331])
def test_lengths_around_a_block_equal_the_reference(length):
    inputs = [torch.randn(1, length, 2, HEAD_DIM, dtype=torch.float64) for _ in range(3)]
    orders = hash_orders(*inputs[:2], hash_planes(HEAD_DIM, seed=0, layer=0, draw=0))
    expected = reference.scatterbrain_attention(*inputs, ROWS, orders, block_length=8)
    got = scatterbrain_attention(*inputs, ROWS, orders, block_length=8)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_blocks", [1, 2, FAMILY, FAMILY + 1, 3 * FAMILY**2 + 5])
def test_an_exclusive_sum_subtracts_nothing(num_blocks):
    x = torch.ones(2, num_blocks, 3)
    # one block outweighs the rest by more than float32 can tell: as a difference its own sum would be 0
    x[:, num_blocks // 2] = 2.0**60
    sums = exclusive_sum(x)
    assert (sums[:, num_blocks // 2] == num_blocks - 1).all()
    assert (sums[:, : num_blocks // 2] >= 2.0**60).all()


def test_weights_are_right_where_the_features_of_a_block_outweigh_all_others():
    # one key's features are e^24 times those of any other, and it stands in the block of all queries but a few
    q, k, v = torch.randn(3, 1, 16, 1, 4, generator=torch.Generator().manual_seed(0)).unbind()
    rows = torch.eye(4) * 6
    k = k * 0.1
    k[0, 3, 0] = torch.tensor([6.0, 0, 0, 0])
    orders = hash_orders(q, k, hash_planes(4, seed=0, layer=0, draw=0))
    expected = reference.scatterbrain_map(q, k, rows, orders, block_length=8)
    got = scatterbrain_map(q, k, rows, orders, block_length=8)
    # a logit sums K products of at most 36 in float32 and a handful of terms
    torch.testing.assert_close(got.double(), expected, rtol=2 * 36 * 10 * 2**-24, atol=1e-12)
    out = scatterbrain_attention(q, k, v, rows, orders, block_length=8)
    torch.testing.assert_close(
        out.double(), (got[0, 0].double() @ v[0, :, 0].double())[None, :, None], rtol=0, atol=1e-4
    )


def kernels(num_draws: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = torch.randn(2, 1, 11, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 0.7
    orders = hash_orders(q, k, hash_planes(4, seed=0, layer=0, draw=0))
    drawn = [reference.kernel(q, k, draw_rows(8, 4, i), orders, block_length=3)[0, 0] for i in range(num_draws)]
    return torch.stack(drawn), (q[0, :, 0] @ k[0, :, 0].T / 2).exp()


def test_numerator_and_normaliser_are_unbiased_over_rows():
    kernel_DLL, exact_LL = kernels()
    v_LK = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    # a column of ones: the normaliser
    v_LK = torch.cat((v_LK, torch.ones(11, 1, dtype=torch.float64)), 1)
    drawn_DLK = kernel_DLL @ v_LK
    error_LK = (drawn_DLK.mean(0) - exact_LL @ v_LK).abs()
    assert (error_LK < 4 * drawn_DLK.std(0) / math.sqrt(len(drawn_DLK))).all()


@pytest.mark.parametrize("num_pads", [0, 1, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, k, v = (torch.randn(2, 61, 2, HEAD_DIM, dtype=torch.float64) for _ in range(3))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, HEAD_DIM, dtype=torch.float64)), 1) for x in (q, k, v)]
    key_mask = (torch.arange(61 + num_pads) < 61).expand(2, -1)
    got = attend(*padded, ROWS, 8, key_mask_BL=key_mask)[:, :61]
    torch.testing.assert_close(got, attend(q, k, v, ROWS, 8), rtol=0, atol=1e-10)


def test_neighbours_in_a_window_change_no_output():
    lengths = [1, 300, 41, 7]
    parts = [[torch.randn(1, n, 2, HEAD_DIM, dtype=torch.float64) for _ in range(3)] for n in lengths]
    packed = [torch.cat(x, 1) for x in zip(*parts, strict=True)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    together = attend(*packed, ROWS, 8, cu_seqlens=cu_seqlens).split(lengths, 1)
    for part, got in zip(parts, together, strict=True):
        torch.testing.assert_close(got, attend(*part, ROWS, 8), rtol=0, atol=1e-10)


def test_queries_without_a_visible_key_are_exactly_zero_in_value_and_gradient():
    inputs = [torch.randn(2, 30, 2, HEAD_DIM, requires_grad=True) for _ in range(3)]
    out = attend(*inputs, ROWS, 4, key_mask_BL=torch.tensor([[True], [False]]).expand(2, 30))
    assert out[0].all()
    assert not out[1].any()
    out[1].sum().backward()
    assert not any(x.grad.any() for x in inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_rounds_the_output_once_and_keeps_gradients_finite(dtype):
    q, k, v = (torch.randn(1, 200, 2, 16).to(dtype).requires_grad_() for _ in range(3))
    rows = draw_rows(32, 16)
    orders = hash_orders(q, k, hash_planes(16, seed=0, layer=0, draw=0))
    out = scatterbrain_attention(q, k, v, rows, orders, block_length=8)
    in_float32 = scatterbrain_attention(q.float(), k.float(), v.float(), rows, orders, block_length=8)
    assert torch.equal(out, in_float32.to(dtype))
    expected = scatterbrain_attention(q.double(), k.double(), v.double(), rows, orders, block_length=8)
    # logarithms of features sum K products in float32; a weight has one of query and key, above and below
    largest = rows.norm(dim=1).max() * max(float(x.detach().norm(dim=-1).max()) for x in (q, k)) / 2
    tolerance = 4 * (16 + 4) * 2**-24 * largest * v.detach().double().abs().max()
    assert (in_float32.double() - expected).abs().max() <= tolerance
    out.float().square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in (q, k, v))


@pytest.mark.parametrize("scale", [1, 8, 64])
def test_large_queries_and_keys_give_finite_values_and_gradients(scale):
    inputs = [(scale * torch.randn(1, 100, 2, 16)).requires_grad_() for _ in range(3)]
    out = attend(*inputs, draw_rows(32, 16), 8)
    out.sum().backward()
    # an average of values
    assert (out.abs() <= inputs[2].abs().amax(1, keepdim=True) * (1 + 1e-5)).all()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(3)]
    with largest_tensor() as largest:
        attend(*inputs, draw_rows(32, 8), 16).sum().backward()
    # all pairs of one head take 64 MiB; features and block of one head, and what its blocks leave behind, 1 MiB
    assert largest.num_bytes <= 4 * max(inputs[0].numel(), eager.GROUP_ELEMENTS)


def mixture(seed: int) -> list[torch.Tensor]:
    """Return a sharp head, in which each query has one key of its own, and a diffuse one."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(5, 512, 16, generator=generator, dtype=torch.float64)
    q = torch.stack((2 * noise[0], 0.5 * noise[1]), 1)[None]
    k = torch.stack((noise[0] + 0.1 * noise[2], 0.5 * noise[3]), 1)[None]
    return [q, k, noise[4][None, :, None].expand(-1, -1, 2, -1)]


def test_on_a_sharp_and_a_diffuse_head_the_error_is_below_that_of_either_half_alone():
    errors = []
    for seed in range(6):
        q, k, v = mixture(seed)
        exact = softmax_attention(q, k, v)
        orders = hash_orders(q, k, hash_planes(16, seed=seed, layer=0, draw=0))
        rows = draw_rows(256, 16, seed)
        blocks_only = BlockSampling(block_length=64, num_sampled_keys=0, seed=0, layer=0, draw=0)
        outs = (
            scatterbrain_attention(q, k, v, rows, orders, block_length=64),
            favor_attention(q, k, v, rows),
            sampled_attention(q, k, v, orders, blocks_only),
        )
        errors.append([float(((x - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))).mean()) for x in outs])
    both, features, blocks = torch.tensor(errors).T
    # features miss the sharp head, blocks the diffuse one: 0.35 beside 0.56 and 1.67
    assert (both < 0.8 * torch.minimum(features, blocks)).all()
