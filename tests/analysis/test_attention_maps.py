"""Maps of a model's layers."""

from __future__ import annotations

import pytest
import torch

from proteinlm.analysis.attention_maps import HiddenErrors, LayerViewer, layer_attention, map_rows, reduced_map
from proteinlm.attention import FavorConfig, SoftmaxConfig, build_attention
from tests.analysis.conftest import small_model

HEADS, WIDTH = 2, 8


def inputs(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, length, HEADS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.fixture(params=[SoftmaxConfig(), FavorConfig(num_random_features=16)], ids=["softmax", "favor"])
def attention(request):
    return build_attention(request.param, head_dim=WIDTH, layer=0, seed=0)


def test_small_maps_are_drawn_entry_by_entry(attention):
    q, k = inputs(20)
    cells = reduced_map(attention, q, k, head=1, inside=slice(1, 19), most_cells=18)
    whole = attention.attention_map(q, k)[0, 1, 1:19, 1:19]
    # cells are float32
    torch.testing.assert_close(torch.from_numpy(cells).double(), whole, rtol=2**-23, atol=0)


def test_large_maps_are_drawn_as_means_of_their_entries(attention):
    q, k = inputs(26)
    cells = reduced_map(attention, q, k, head=0, inside=slice(1, 25), most_cells=6)
    whole = attention.attention_map(q, k)[0, 0, 1:25, 1:25]
    expected = whole.unflatten(0, (6, 4)).unflatten(2, (6, 4)).mean((1, 3))
    torch.testing.assert_close(torch.from_numpy(cells).double(), expected, rtol=2**-23, atol=0)


def test_cells_of_unequal_size_keep_the_weight_of_the_map(attention):
    q, k = inputs(23)
    cells = reduced_map(attention, q, k, head=0, inside=slice(0, 23), most_cells=5)
    sizes = torch.tensor([4, 5, 4, 5, 5], dtype=torch.float64)
    weight = (torch.from_numpy(cells).double() * sizes[:, None] * sizes).sum().item()
    assert weight == pytest.approx(23, rel=1e-6)


def test_rows_of_a_map_are_those_of_the_mechanism(attention):
    q, k = inputs(12)
    rows = map_rows(attention, q, k)(slice(3, 7))
    torch.testing.assert_close(rows, attention.attention_map(q, k)[0, :, 3:7])


def test_hidden_states_of_the_same_pass_have_no_error():
    model = small_model()
    tokens = torch.randint(4, 24, (1, 15), generator=torch.Generator().manual_seed(0))
    first = LayerViewer()
    with torch.no_grad():
        model.encode(tokens, observer=first)
        second = HiddenErrors(first.hidden_states)
        model.encode(tokens, observer=second)
    assert second.errors == [0.0, 0.0, 0.0]


def test_layers_are_seen_in_order():
    model = small_model()
    seen = []
    with torch.no_grad():
        model.encode(torch.full((1, 9), 5), observer=LayerViewer(lambda layer, q, k, v: seen.append((layer, q.shape))))
    assert seen == [(0, (1, 9, 2, 16)), (1, (1, 9, 2, 16))]


def test_attention_of_a_layer_is_the_one_that_runs():
    model = small_model()
    assert layer_attention(model, 1).layer == 1
