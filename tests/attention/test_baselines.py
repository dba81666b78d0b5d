from __future__ import annotations

import pytest
import torch

from proteinlm.attention import BigBirdConfig, IdentityConfig, WindowConfig, build_attention
from proteinlm.errors import ShapeError

HEAD_DIM = 6


def draw(*sizes: int) -> list[torch.Tensor]:
    return [torch.randn(*sizes, HEAD_DIM, requires_grad=True) for _ in range(3)]


def identity():
    return build_attention(IdentityConfig(), head_dim=HEAD_DIM, layer=0, seed=0)


def test_identity_returns_each_positions_own_value():
    q, k, v = draw(2, 9, 3)
    assert torch.equal(identity()(q, k, v, cu_seqlens=torch.tensor([0, 4, 9, 18])), v)


def test_identity_returns_zero_where_the_position_is_hidden():
    q, k, v = draw(2, 9, 3)
    key_mask = torch.rand(2, 9) > 0.4
    out = identity()(q, k, v.masked_fill(~key_mask[..., None, None], torch.nan), key_mask_BL=key_mask)
    assert torch.equal(out[key_mask], v[key_mask])
    assert not out[~key_mask].any()


def test_identity_gives_queries_and_keys_gradients_of_zero():
    q, k, v = draw(2, 9, 3)
    key_mask = torch.rand(2, 9) > 0.4
    identity()(q, k, v, key_mask_BL=key_mask).sum().backward()
    assert not q.grad.any()
    assert not k.grad.any()
    assert torch.equal(v.grad, key_mask[..., None, None].float().expand_as(v))


@pytest.mark.parametrize("part", [slice(None), slice(2, 7), slice(0, 0)], ids=["all", "block", "none"])
def test_the_map_of_identity_is_the_identity_matrix(part):
    q, k, _ = draw(2, 9, 3)
    expected = torch.eye(9).expand(2, 3, -1, -1)
    assert torch.equal(identity().attention_map(q, k, rows=part), expected[:, :, part])
    key_mask = torch.rand(2, 9) > 0.4
    masked = identity().attention_map(q, k, rows=part, key_mask_BL=key_mask)
    assert torch.equal(masked, (expected * key_mask[:, None, None])[:, :, part])


def test_identity_still_checks_where_segments_end():
    with pytest.raises(ShapeError, match="cu_seqlens lacks 9, the end of a window"):
        identity()(*draw(2, 9, 3), cu_seqlens=torch.tensor([0, 10, 18]))


def test_layers_and_seeds_see_different_random_blocks():
    config = BigBirdConfig(block_length=2)
    inputs = draw(1, 80, 1)
    outputs = [
        build_attention(config, head_dim=HEAD_DIM, layer=layer, seed=seed)(*inputs)
        for layer, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert [torch.equal(outputs[0], out) for out in outputs] == [True, True, False, False]


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (WindowConfig, {"window": -1}, "window is -1; expected 0 or more"),
        (BigBirdConfig, {"block_length": 0}, "block_length is 0; expected 1 or more"),
        (BigBirdConfig, {"num_window_blocks": -1}, "num_window_blocks is -1; expected 0 or more"),
        (BigBirdConfig, {"num_global_tokens": -2}, "num_global_tokens is -2; expected 0 or more"),
        (BigBirdConfig, {"num_random_blocks": -3}, "num_random_blocks is -3; expected 0 or more"),
    ],
    ids=["window", "block length", "window blocks", "global tokens", "random blocks"],
)
def test_settings_out_of_range_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_window_of_no_neighbour_is_identity():
    q, k, v = draw(2, 9, 3)
    options = {"key_mask_BL": torch.rand(2, 9) > 0.4, "cu_seqlens": torch.tensor([0, 4, 9, 18])}
    narrow = build_attention(WindowConfig(window=0), head_dim=HEAD_DIM, layer=0, seed=0)
    torch.testing.assert_close(narrow(q, k, v, **options), identity()(q, k, v, **options))
