from __future__ import annotations

import pytest
import torch

from proteinlm.errors import ShapeError
from proteinlm.ops.lsh_attention import bucket_factors, hash_buckets, hashing, rotations
from proteinlm.ops.visibility import Visibility

HEADS, HEAD_DIM = 3, 5


def draw(num_rounds: int, *, draw: int = 0) -> torch.Tensor:
    return rotations(num_rounds, HEAD_DIM, seed=1, layer=2, draw=draw)


def by_definition(x_K: torch.Tensor, rotations_2KF: torch.Tensor, factors: tuple[int, int]) -> int:
    """Return h1 + n h2 with h = argmax([x R; -x R])."""
    first, second = (
        int(torch.cat((x_K @ rotation_KF[:, : n // 2], -x_K @ rotation_KF[:, : n // 2])).argmax()) if n > 1 else 0
        for n, rotation_KF in zip(factors, rotations_2KF, strict=True)
    )
    return first + factors[0] * second


@pytest.mark.one_in(2)
@pytest.mark.parametrize("num_buckets", [0, 2, 6, 128, 200], ids=lambda n: f"{n} buckets")
@pytest.mark.parametrize("elements", [2**18, 1], ids=["large tiles", "tiles of one position"])
def test_buckets_are_those_of_the_definition(layout, num_buckets, elements, monkeypatch):
    monkeypatch.setattr(hashing, "TILE_ELEMENTS", elements)
    q, _, _ = layout.draw(HEADS, HEAD_DIM, requires_grad=False)
    got = hash_buckets(q, draw(2), 4, num_buckets=num_buckets, **layout.options)
    for segment in Visibility(*q.shape[:2], **layout.options).segments:
        factors = bucket_factors(segment.num_visible, 4, num_buckets)
        for position in range(segment.start, segment.stop):
            window, place = divmod(position, q.shape[1])
            for head in range(HEADS):
                expected = [by_definition(q[window, place, head], one, factors) for one in draw(2)]
                assert got[window, place, head].tolist() == expected


def test_there_is_about_one_bucket_a_chunk_and_an_even_number():
    for length in (1, 63, 64, 1000, 8192, 10_000, 65_536, 1_000_000):
        first, second = bucket_factors(length, 64)
        assert first % 2 == 0
        assert second == 1 or second % 2 == 0
        assert length / 64 <= first * second <= max(2, 1.5 * length / 64 + 2)
    assert bucket_factors(128 * 64, 64) == (128, 1)
    assert bucket_factors(10**9, 64) == (128, 128)


def test_first_rounds_stay_the_same_when_rounds_are_added():
    q = torch.randn(1, 50, 2, HEAD_DIM)
    few, many = (hash_buckets(q, draw(r), 4) for r in (2, 8))
    assert torch.equal(few, many[..., :2])


def test_rotations_are_a_function_of_their_names_alone():
    before = torch.random.get_rng_state()
    assert torch.equal(draw(3), draw(3))
    assert torch.equal(before, torch.random.get_rng_state())
    others = [
        draw(3, draw=1),
        rotations(3, HEAD_DIM, seed=2, layer=2, draw=0),
        rotations(3, HEAD_DIM, seed=1, layer=0, draw=0),
    ]
    assert not any(torch.equal(draw(3), other) for other in others)


def test_rounds_are_independent():
    # correlations of 320 pairs of normal numbers have a standard deviation of 1 / sqrt(320)
    drawn_RN = draw(6).flatten(1)
    correlations = torch.corrcoef(drawn_RN) - torch.eye(6)
    assert correlations.abs().max() < 5 / drawn_RN.shape[1] ** 0.5


def test_the_length_of_a_vector_does_not_matter():
    q = torch.randn(1, 50, 2, HEAD_DIM, dtype=torch.float64)
    assert torch.equal(hash_buckets(q, draw(4), 4), hash_buckets(q * 1e-6, draw(4), 4))


def test_like_vectors_share_buckets_more_often_than_unlike_ones():
    x, noise = torch.randn(2, 1, 400, 1, 32)
    near, far = x + noise / 4, torch.randn(1, 400, 1, 32)
    turned = rotations(4, 32, seed=0, layer=0, draw=0)
    buckets = [hash_buckets(one, turned, 16, num_buckets=16) for one in (x, near, far)]
    near_share, far_share = ((buckets[0] == other).float().mean() for other in buckets[1:])
    assert far_share < 0.15
    assert near_share > 3 * far_share


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_hashes_its_own_values_in_float32(dtype):
    q = (1e3 * torch.randn(1, 50, 2, HEAD_DIM)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = hash_buckets(q, draw(4), 4)
    assert torch.equal(got, hash_buckets(q.float(), draw(4), 4))
    assert got.dtype == torch.int16


def test_rotations_of_another_width_are_refused():
    with pytest.raises(ShapeError, match=r"rotations are \(1, 2, 6, 64\); expected \(R, 2, 5, F\)"):
        hash_buckets(torch.randn(1, 4, 1, 5), rotations(1, 6, seed=0, layer=0, draw=0), 4)
