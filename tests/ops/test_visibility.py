from __future__ import annotations

import re

import pytest
import torch

from proteinlm.errors import ShapeError, UnavailableError
from proteinlm.ops import linear_attention as linear
from proteinlm.ops import lsh_attention as lsh
from proteinlm.ops import random_features as favor
from proteinlm.ops import sampled_attention as sampled
from proteinlm.ops import scatterbrain_attention as scatterbrain
from proteinlm.ops import softmax_attention as softmax
from proteinlm.ops import window_attention as window
from proteinlm.ops.blank_map import row_bounds
from proteinlm.ops.block_sparse_attention import BlockPattern, bigbird_attention, bigbird_map
from proteinlm.ops.visibility import Visibility

B, L, H, K = 2, 20, 3, 4
ROWS = torch.randn(8, K, generator=torch.Generator().manual_seed(0))
BLOCKS = sampled.BlockSampling(block_length=4, num_sampled_keys=2, seed=0, layer=0, draw=0)
PATTERN = BlockPattern(block_length=4, num_window_blocks=1, num_global_tokens=1, num_random_blocks=1, seed=0, layer=0)
ORDERS = torch.arange(B * L).expand(2, H, -1)
BUCKETS = torch.zeros(B, L, H, 2, dtype=torch.int16)
CHUNKING = lsh.Chunking(4)

# every public operation, as one that takes q, k, v or q, k
OPERATIONS = {
    "softmax_attention": softmax.softmax_attention,
    "softmax_map": lambda q, k, v, **seen: softmax.softmax_map(q, k, **seen),
    "favor_attention": lambda q, k, v, **seen: favor.favor_attention(q, k, v, ROWS, **seen),
    "favor_map": lambda q, k, v, **seen: favor.favor_map(q, k, ROWS, **seen),
    "causal_favor_attention": lambda q, k, v, **seen: favor.causal_favor_attention(q, k, v, ROWS, **seen),
    "causal_favor_map": lambda q, k, v, **seen: favor.causal_favor_map(q, k, ROWS, **seen),
    "linear_attention": linear.linear_attention,
    "linear_map": lambda q, k, v, **seen: linear.linear_map(q, k, **seen),
    "window_attention": lambda q, k, v, **seen: window.window_attention(q, k, v, 3, **seen),
    "window_map": lambda q, k, v, **seen: window.window_map(q, k, 3, **seen),
    "bigbird_attention": lambda q, k, v, **seen: bigbird_attention(q, k, v, PATTERN, **seen),
    "bigbird_map": lambda q, k, v, **seen: bigbird_map(q, k, PATTERN, **seen),
    "sampled_attention": lambda q, k, v, **seen: sampled.sampled_attention(q, k, v, ORDERS, BLOCKS, **seen),
    "sampled_map": lambda q, k, v, **seen: sampled.sampled_map(q, k, ORDERS, BLOCKS, **seen),
    "hash_orders": lambda q, k, v, **seen: sampled.hash_orders(q, k, ROWS, **seen),
    "scatterbrain_attention": lambda q, k, v, **seen: scatterbrain.scatterbrain_attention(
        q, k, v, ROWS, ORDERS, block_length=4, **seen
    ),
    "scatterbrain_map": lambda q, k, v, **seen: scatterbrain.scatterbrain_map(
        q, k, ROWS, ORDERS, block_length=4, **seen
    ),
}
# those that make keys of the queries
SHARED = {
    "shared_query_key_attention": softmax.shared_query_key_attention,
    "lsh_attention": lambda q, v, **seen: lsh.lsh_attention(q, v, BUCKETS, CHUNKING, **seen),
}


@pytest.fixture(params=list(OPERATIONS.values()), ids=list(OPERATIONS))
def operation(request):
    return request.param


@pytest.fixture(params=list(SHARED.values()), ids=list(SHARED))
def shared(request):
    return request.param


def draw(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(sizes) for _ in range(3)]


def test_keys_of_another_length_are_refused_and_not_mixed_up(operation):
    q, (k, v, _) = torch.randn(B, L, H, K), draw(B, 32, H, K)
    with pytest.raises(ShapeError, match=re.escape(f"keys are (2, 32, 3, 4) but queries ({B}, {L}, {H}, {K})")):
        operation(q, k, v)


def test_heads_that_share_keys_are_refused_by_name(operation):
    q, k, v = torch.randn(B, L, H, K), *draw(B, L, 1, K)[:2]
    with pytest.raises(ShapeError, match="cross-attention and heads that share keys are not offered"):
        operation(q, k, v)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["queries", "keys"])
def test_inputs_that_are_no_floats_are_refused_and_not_truncated(operation, which, dtype):
    inputs = draw(B, L, H, K)
    inputs[which] = inputs[which].to(dtype)
    with pytest.raises(ShapeError, match=rf"(queries|keys) are {dtype} .* expected floating point \(B, L, H, K\)"):
        operation(*inputs)


def test_three_dimensions_are_refused(operation):
    with pytest.raises(ShapeError, match=re.escape("queries are torch.float32 (20, 3, 4); expected floating point")):
        operation(*draw(L, H, K))


def test_masks_must_be_bool_and_of_the_windows(operation):
    inputs = draw(B, L, H, K)
    with pytest.raises(ShapeError, match=re.escape("key mask is torch.int64 (2, 20); expected torch.bool (2, 20)")):
        operation(*inputs, key_mask_BL=torch.ones(B, L, dtype=torch.int64))
    with pytest.raises(ShapeError, match=re.escape("key mask is torch.bool (20, 2); expected torch.bool (2, 20)")):
        operation(*inputs, key_mask_BL=torch.ones(L, B, dtype=torch.bool))


def test_shared_queries_and_keys_are_checked_too(shared):
    q, v, _ = draw(B, L, H, K)
    with pytest.raises(ShapeError, match=re.escape("values are (2, 19, 3, 4) but queries (2, 20, 3, 4)")):
        shared(q, v[:, 1:])
    with pytest.raises(ShapeError, match=r"values are torch.int64"):
        shared(q, v.long())
    with pytest.raises(ShapeError, match=r"key mask is torch.int64 \(2, 20\)"):
        shared(q, v, key_mask_BL=torch.ones(B, L, dtype=torch.int64))


def test_projection_rows_of_a_wrong_width_are_named():
    q, k, v = draw(B, L, H, K)
    wide = torch.randn(8, K + 1)
    for call in (
        lambda: favor.favor_attention(q, k, v, wide),
        lambda: favor.favor_map(q, k, wide),
        lambda: favor.causal_favor_attention(q, k, v, wide),
        lambda: favor.favor_state(k, v, wide),
        lambda: scatterbrain.scatterbrain_attention(q, k, v, wide, ORDERS, block_length=4),
    ):
        with pytest.raises(
            ShapeError, match=re.escape("projection rows are torch.float32 (8, 5); expected floats (M, 4)")
        ):
            call()


def test_orders_and_buckets_that_do_not_fit_are_named():
    q, k, v = draw(B, L, H, K)
    with pytest.raises(ShapeError, match=re.escape("orders are torch.int64 (2, 3, 39); expected int32 (2, 3, 40)")):
        sampled.sampled_attention(q, k, v, ORDERS[..., 1:], BLOCKS)
    with pytest.raises(ShapeError, match=r"buckets are torch.float32"):
        lsh.lsh_attention(q, v, BUCKETS.float(), CHUNKING)
    with pytest.raises(ShapeError, match=re.escape("rotations are (2, 2, 5, 64); expected (R, 2, 4, F)")):
        lsh.hash_buckets(q, lsh.rotations(2, 5, seed=0, layer=0, draw=0), 4)


def test_an_operation_without_causal_form_says_so():
    q, k, v = draw(B, L, H, K)
    for name in ("window_attention", "bigbird_map", "sampled_attention", "scatterbrain_map", "favor_attention"):
        with pytest.raises(UnavailableError, match="has no causal form"):
            OPERATIONS[name](q, k, v, is_causal=True)


def test_a_visibility_is_what_it_is_made_of(operation):
    inputs = draw(B, L, H, K)
    parts = {"key_mask_BL": torch.rand(B, L) > 0.3, "cu_seqlens": torch.tensor([0, 7, 20, 40], dtype=torch.int32)}
    visibility = Visibility(B, L, **parts)
    first, again = (operation(*inputs, visibility=visibility) for _ in range(2))
    assert torch.equal(first, operation(*inputs, **parts))
    assert torch.equal(first, again)


def test_a_visibility_of_other_windows_or_beside_its_parts_is_refused(operation):
    inputs = draw(B, L, H, K)
    with pytest.raises(ShapeError, match="visibility is of 1 windows of 40, but the inputs are 2 windows of 20"):
        operation(*inputs, visibility=Visibility(1, 40))
    with pytest.raises(ShapeError, match="expected it or these, not both"):
        operation(*inputs, visibility=Visibility(B, L), cu_seqlens=torch.tensor([0, 20, 40]))


def test_plans_are_made_once_and_serve_training_after_inference():
    visibility = Visibility(B, L, torch.rand(B, L) > 0.3)
    with torch.inference_mode():
        linear.linear_attention(*draw(B, L, H, K), visibility=visibility)
    tiles = visibility.tiles(torch.device("cpu"), 2**18 // (H * K))
    inputs = [x.requires_grad_() for x in draw(B, L, H, K)]
    linear.linear_attention(*inputs, visibility=visibility).sum().backward()
    assert visibility.tiles(torch.device("cpu"), 2**18 // (H * K)) is tiles
    assert all(x.grad.isfinite().all() for x in inputs)


def test_what_one_window_sees_is_that_part():
    mask = torch.rand(3, 5) > 0.4
    visibility = Visibility(3, 5, mask, torch.tensor([0, 2, 5, 6, 10, 15]), is_causal=True)
    one = visibility.of_window(1)
    assert (one.ends, one.is_causal) == ([0, 1, 5], True)
    assert torch.equal(one.key_mask_BL, mask[1:2])


def test_segments_are_numbered_without_the_empty_ones():
    visibility = Visibility(2, 3, cu_seqlens=torch.tensor([0, 2, 2, 3, 6]))
    numbers = visibility.segment_numbers(torch.device("cpu"))
    assert numbers.tolist() == [[0, 0, 2], [3, 3, 3]]


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([0, 9]), r"cu_seqlens is \[0, 9\]; expected 0 to 10 in rising order"),
        (torch.tensor([1, 5, 10]), r"expected 0 to 10 in rising order"),
        (torch.tensor([0, 5, 3, 10]), r"expected 0 to 10 in rising order"),
        (torch.tensor([0, 4, 10]), r"lacks 5, the end of a window of 5"),
        (torch.tensor([0.0, 5.0, 10.0]), r"torch.float32 \(3,\); expected int32"),
        (torch.tensor([], dtype=torch.int32), r"expected 0 to 10"),
    ],
    ids=["short", "late start", "falling", "across windows", "float", "empty"],
)
def test_bad_segment_boundaries_say_what_was_expected(cu_seqlens, message):
    with pytest.raises(ShapeError, match=message):
        Visibility(2, 5, cu_seqlens=cu_seqlens)


def test_rows_of_a_map_go_up_by_one():
    with pytest.raises(ShapeError, match="steps of 2"):
        row_bounds(slice(0, 8, 2), 10)
