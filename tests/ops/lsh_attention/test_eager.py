from __future__ import annotations

import math

import pytest
import torch

from proteinlm.errors import ShapeError
from proteinlm.ops.lsh_attention import Chunking, eager, hash_buckets, lsh_attention, reference, rotations, rounds
from proteinlm.ops.softmax_attention import shared_query_key_attention

HEADS, HEAD_DIM = 3, 5

CHUNKINGS = {
    "as in the paper": Chunking(4, 1, 1),
    "own chunk only": Chunking(5, 0, 0),
    "back only": Chunking(4, 1, 0),
    "forward only": Chunking(4, 0, 1),
    "two each way": Chunking(3, 2, 2),
    "uneven": Chunking(3, 2, 1),
    "single positions": Chunking(1, 1, 1),
    "one chunk": Chunking(64, 1, 1),
}


@pytest.fixture(params=list(CHUNKINGS.values()), ids=list(CHUNKINGS))
def chunking(request):
    return request.param


@pytest.fixture(params=[2**18, 60, 8], ids=["large tiles", "small tiles", "parts of chunks"])
def _tiles(request, monkeypatch):
    """Let heads share a tile, or chunks be cut apart."""
    monkeypatch.setattr(rounds, "TILE_ELEMENTS", request.param)
    monkeypatch.setattr(eager, "GROUP_ROWS", 10 * request.param)


def buckets_of(q: torch.Tensor, num_rounds: int, chunk_length: int, **options) -> torch.Tensor:
    turned = rotations(num_rounds, q.shape[-1], seed=1, layer=0, draw=0)
    return hash_buckets(q, turned, chunk_length, **options)


def compare(inputs, buckets, chunking, value_tolerance=1e-12, **options):
    """Assert that values and gradients are those of the reference."""
    q, v = inputs
    got, expected = (
        lsh_attention(q, v, buckets, chunking, **options),
        reference.lsh_attention(q, v, buckets, chunking, **options),
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=value_tolerance)
    weights = torch.randn(q.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, (q, v), weights) for out in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=10 * value_tolerance)


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_values_and_gradients_equal_the_reference(layout, chunking, num_rounds):
    q, _, v = layout.draw(HEADS, HEAD_DIM)
    compare((q, v), buckets_of(q, num_rounds, 4, **layout.options), chunking, **layout.options)


@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_causal_values_and_gradients_equal_the_reference(layout, num_before):
    q, _, v = layout.draw(HEADS, HEAD_DIM)
    buckets = buckets_of(q, 3, 4, **layout.options)
    compare((q, v), buckets, Chunking(4, num_before, 0), is_causal=True, **layout.options)


@pytest.mark.parametrize("num_rounds", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 61])
def test_any_length_and_any_number_of_rounds(length, num_rounds):
    q, v = (torch.randn(1, length, 2, HEAD_DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    compare((q, v), buckets_of(q, num_rounds, 8), Chunking(8, 1, 1))


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("largest", [1, 1e3, 1e-3], ids=["usual", "huge", "tiny"])
def test_scores_of_any_size(largest, is_causal):
    q = (largest * torch.randn(1, 40, 2, HEAD_DIM, dtype=torch.float64)).requires_grad_()
    v = torch.randn(1, 40, 2, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    # a score of 1e3 is known to 1e3 times the rounding of 1
    compare((q, v), buckets_of(q, 3, 8), Chunking(8, 1, 0), 1e-12 * max(1, largest), is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_a_query_with_opposite_keys_only_has_weights(is_causal):
    # all scores far below those of the queries with themselves: exp of none of them is 0 beside its maximum
    signs = torch.ones(2, 1, 1).index_fill(0, torch.tensor([1]), -1)
    q = (500 * signs * torch.randn(1, 1, 1, 8)).float()
    out = lsh_attention(
        q, torch.randn(1, 2, 1, 8), torch.zeros(1, 2, 1, 1, dtype=torch.int16), Chunking(4), is_causal=is_causal
    )
    assert out.isfinite().all()
    assert out.abs().sum(-1).min() > 0


@pytest.mark.parametrize("num_rounds", [1, 4])
@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_one_chunk_is_exact_attention_for_any_number_of_rounds(layout, num_rounds, is_causal):
    q, _, v = layout.draw(HEADS, HEAD_DIM)
    buckets = buckets_of(q, num_rounds, 4, **layout.options)
    got = lsh_attention(q, v, buckets, Chunking(64, 1, 1), is_causal=is_causal, **layout.options)
    exact = shared_query_key_attention(q, v, is_causal=is_causal, **layout.options)
    if layout.key_mask_BL is not None:
        # here a hidden position is no query either
        assert not got[~layout.key_mask_BL].any()
        exact = exact * layout.key_mask_BL[..., None, None]
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)


def test_the_same_round_again_changes_nothing():
    q, v = (torch.randn(1, 61, 2, HEAD_DIM, dtype=torch.float64) for _ in range(2))
    once = buckets_of(q, 1, 8)
    got = lsh_attention(q, v, once.expand(-1, -1, -1, 5), Chunking(8))
    torch.testing.assert_close(got, lsh_attention(q, v, once, Chunking(8)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_chunks", [100, 300], ids=["numbers in uint8", "numbers in int16"])
def test_many_chunks_are_told_apart(num_chunks):
    # numbers of chunks are compared in narrow integers, which wrap around
    q, v = (torch.randn(1, 2 * num_chunks, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    compare((q, v), torch.randint(num_chunks, (1, 2 * num_chunks, 1, 3)).short(), Chunking(2, 1, 0))


def test_gradients_equal_differences():
    q, v = (torch.randn(1, 7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    buckets = torch.randint(3, (1, 7, 2, 2))
    assert torch.autograd.gradcheck(lambda q, v: lsh_attention(q, v, buckets, Chunking(2)), (q, v))


def test_a_query_of_zeros_has_finite_gradients():
    q, v = (torch.randn(1, 9, 1, 4) for _ in range(2))
    q[:, 3] = 0
    inputs = [x.requires_grad_() for x in (q, v)]
    out = lsh_attention(*inputs, torch.zeros(1, 9, 1, 2, dtype=torch.int16), Chunking(4))
    out.square().sum().backward()
    assert all(x.isfinite().all() for x in (out, q.grad, v.grad))


@pytest.mark.parametrize("num_pads", [0, 1, 8, 96])
def test_pads_change_no_valid_output(num_pads):
    q, v = (torch.randn(2, 61, 2, 16, dtype=torch.float64) for _ in range(2))
    padded = [torch.cat((x, torch.randn(2, num_pads, 2, 16, dtype=torch.float64)), 1) for x in (q, v)]
    key_mask = (torch.arange(61 + num_pads) < 61).expand(2, -1)
    got = lsh_attention(*padded, buckets_of(padded[0], 4, 8, key_mask_BL=key_mask), Chunking(8), key_mask_BL=key_mask)
    expected = lsh_attention(q, v, buckets_of(q, 4, 8), Chunking(8))
    torch.testing.assert_close(got[:, :61], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("is_causal", [False, True], ids=["bidirectional", "causal"])
def test_neighbours_in_a_window_change_no_output(is_causal):
    lengths = [1, 300, 41, 7, 64]
    parts = [[torch.randn(1, n, 2, 16, dtype=torch.float64) for _ in range(2)] for n in lengths]
    q, v = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    buckets = buckets_of(q, 4, 8, cu_seqlens=cu_seqlens)
    together = lsh_attention(q, v, buckets, Chunking(8), is_causal=is_causal, cu_seqlens=cu_seqlens).split(lengths, 1)
    for (q, v), got in zip(parts, together, strict=True):
        alone = lsh_attention(q, v, buckets_of(q, 4, 8), Chunking(8), is_causal=is_causal)
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-10)


def test_where_nothing_is_visible_output_and_gradients_are_exactly_zero():
    inputs = [torch.randn(1, 9, 2, 4, requires_grad=True) for _ in range(2)]
    buckets = torch.zeros(1, 9, 2, 2, dtype=torch.int16)
    out = lsh_attention(*inputs, buckets, Chunking(4), key_mask_BL=torch.zeros(1, 9, dtype=torch.bool))
    out.sum().backward()
    assert not any(x.any() for x in (out, *(x.grad for x in inputs)))


def test_hidden_positions_may_hold_anything():
    q, v = (torch.randn(1, 12, 2, 4, dtype=torch.float64) for _ in range(2))
    key_mask = torch.arange(12)[None] % 3 > 0
    dirty = [x.masked_fill(~key_mask[..., None, None], math.nan) for x in (q, v)]
    results = []
    for inputs in ((q, v), dirty):
        leaves = [x.clone().requires_grad_() for x in inputs]
        buckets = buckets_of(leaves[0], 3, 2, key_mask_BL=key_mask)
        out = lsh_attention(*leaves, buckets, Chunking(2), key_mask_BL=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(map(torch.equal, *results))


def test_no_gradient_reaches_a_later_position():
    inputs = [torch.randn(1, 60, 2, 4, requires_grad=True) for _ in range(2)]
    out = lsh_attention(*inputs, buckets_of(inputs[0], 3, 4), Chunking(4, 1, 0), is_causal=True)
    for gradient in torch.autograd.grad(out[:, :30].square().sum(), inputs):
        assert gradient[:, :30].any()
        assert not gradient[:, 30:].any()


def test_error_against_exact_attention_falls_with_rounds():
    # 16 directions, so that the keys that matter to a query are like it
    centres = torch.nn.functional.normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    noise = 0.03 * torch.randn(1, 512, 2, 32, generator=torch.Generator().manual_seed(1))
    q = 60 * (centres[torch.arange(512) % 16][None, :, None] + noise)
    v = torch.randn(1, 512, 2, 32, generator=torch.Generator().manual_seed(2))
    exact = shared_query_key_attention(q, v)
    errors = []
    for num_rounds in (1, 2, 4, 8):
        got = lsh_attention(q, v, buckets_of(q, num_rounds, 16), Chunking(16))
        errors.append(float((got - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reduced_precision_rounds_the_output_once(dtype):
    q, v = (torch.randn(1, 200, 2, 16).to(dtype) for _ in range(2))
    buckets = buckets_of(q, 3, 8)
    expected = lsh_attention(q.double(), v.double(), buckets, Chunking(8))
    error = (lsh_attention(q, v, buckets, Chunking(8)).double() - expected).abs()
    # a score sums K products in float32, a key has a norm of as many; a weight has one in numerator and normaliser,
    # and as many terms are summed as are seen
    in_logarithm = 2 * (2 * 16 + 2) * 2**-24 * q.double().norm(dim=-1).max() / 4 + 3 * 3 * 8 * 2**-24
    tolerance = 2 * in_logarithm * v.double().abs().max() + torch.finfo(dtype).eps / 2 * expected.abs()
    assert (error <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 300], ids=["usual", "large"])
def test_half_precision_gradients_are_finite_and_of_the_input_dtype(dtype, size):
    inputs = [
        (size * torch.randn(1, 300, 2, 16)).to(dtype).requires_grad_(),
        torch.randn(1, 300, 2, 16).to(dtype).requires_grad_(),
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = lsh_attention(*inputs, buckets_of(inputs[0], 3, 8), Chunking(8))
    out.float().square().sum().backward()
    assert out.dtype == dtype
    assert all(x.grad.isfinite().all() and x.grad.dtype == dtype for x in inputs)


def test_gradients_in_half_precision_see_the_output_unrounded():
    q, v, grad = (torch.randn(1, 200, 2, 16).bfloat16() for _ in range(3))
    # values of nearly one size: the gradient of q is a small difference of large products
    v = (v * 0.1 + 4).bfloat16()
    buckets = buckets_of(q, 3, 8)
    gradients = {}
    for dtype in (torch.bfloat16, torch.float64):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, v)]
        lsh_attention(*inputs, buckets, Chunking(8)).backward(grad.to(dtype))
        gradients[dtype] = [x.grad.double() for x in inputs]
    # a gradient that is only rounded itself differs by 2^-9 at most, in norm by less
    for half, exact in zip(*gradients.values(), strict=True):
        assert (half - exact).norm() < 2**-8 * exact.norm()


@pytest.mark.parametrize("chunk_length", [16, 4096], ids=["small chunks", "one chunk"])
def test_no_tensor_of_queries_times_keys_is_alive(largest_tensor, chunk_length):
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(2)]
    with largest_tensor() as largest:
        lsh_attention(*inputs, buckets_of(inputs[0], 2, 16), Chunking(chunk_length)).sum().backward()
    # all pairs would take 256 MiB; orders and rows of slots are int64
    assert largest.num_bytes <= max(4 * rounds.TILE_ELEMENTS, 4 * inputs[0].numel(), 2 * 8 * 2 * 4 * 4097)


def test_what_is_kept_for_backward_is_linear_in_the_length():
    inputs = [torch.randn(1, 4096, 4, 8, requires_grad=True) for _ in range(2)]
    kept = []

    def pack(x):
        kept.append(x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        lsh_attention(*inputs, buckets_of(inputs[0], 4, 16), Chunking(16))
    # inputs and output, a logarithm for each query, a bucket for each round
    assert sum(kept) <= 3 * inputs[0].numel() * 4 + 4 * 4097 * 4 + 4 * 4096 * 4 * 2


def test_a_second_derivative_is_refused():
    q, v = (torch.randn(1, 9, 1, 4, requires_grad=True) for _ in range(2))
    out = lsh_attention(q, v, torch.zeros(1, 9, 1, 1, dtype=torch.int16), Chunking(4))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_buckets_that_do_not_fit_are_refused():
    q = torch.randn(1, 9, 2, 4)
    with pytest.raises(ShapeError, match=r"buckets are torch.int16 \(1, 9, 1, 3\); expected integers \(1, 9, 2, 'R'\)"):
        lsh_attention(q, q, torch.zeros(1, 9, 1, 3, dtype=torch.int16), Chunking(4))
