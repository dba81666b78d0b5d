"""The attention of a model's layers, looked at while a protein runs through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proteinlm.analysis.agreement import MapRows, block_rows, relative_norm
from proteinlm.attention import Attention
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.ops.visibility import Visibility

SeeLayer = Callable[[int, Tensor, Tensor, Tensor], None]
"""Is given a layer's number and its q_BLHK, k_BLHK and v_BLHK."""


def layer_attention(model: MaskedLM, layer: int) -> Attention:
    """Return the mechanism of a layer, counted from 0."""
    attention = model.encoder.blocks[layer].attention
    assert isinstance(attention, Attention)
    return attention


def map_rows(attention: Attention, q_BLHK: Tensor, k_BLHK: Tensor) -> MapRows:
    """Return the map of one window, exact or implied, as something that gives rows of all heads."""

    def rows_of_map(rows: slice) -> Tensor:
        return attention.attention_map(q_BLHK, k_BLHK, rows=rows)[0]

    return rows_of_map


def reduced_map(
    attention: Attention, q_BLHK: Tensor, k_BLHK: Tensor, *, head: int, inside: slice, most_cells: int
) -> NDArray[np.float32]:
    """Return the map of one head of one window, as means over blocks of entries, to be drawn.

    Args:
        attention: the mechanism.
        q_BLHK: queries of one window.
        k_BLHK: keys of one window.
        head: counted from 0.
        inside: positions to keep, rows and columns.
        most_cells: cells a side at most; with fewer positions every entry is a cell.

    Returns:
        weights_CC, each cell the mean of its entries.
    """
    only = slice(head, head + 1)
    length = inside.stop - inside.start
    starts_C = np.linspace(0, length, min(length, most_cells), endpoint=False).astype(np.int64)
    sizes_C = np.diff(starts_C, append=length)
    cells = np.empty((len(starts_C), len(starts_C)), dtype=np.float32)
    step = max(1, block_rows(1, k_BLHK.shape[1]) // int(sizes_C.max()))
    for first in range(0, len(starts_C), step):
        block = slice(first, min(first + step, len(starts_C)))
        top, bottom = starts_C[block][0], starts_C[block][-1] + sizes_C[block][-1]
        rows = slice(inside.start + int(top), inside.start + int(bottom))
        map_BHRL = attention.attention_map(q_BLHK, k_BLHK, rows=rows, heads=only)
        weights_RL = map_BHRL[0, 0, :, inside].cpu().numpy()
        sums = np.add.reduceat(np.add.reduceat(weights_RL, starts_C[block] - top, axis=0), starts_C, axis=1)
        cells[block] = sums / (sizes_C[block, None] * sizes_C)
    return cells


class LayerViewer:
    """An ``Observer`` that keeps the hidden states of a pass and shows each layer's q, k and v."""

    def __init__(self, see_layer: SeeLayer | None = None) -> None:
        self.hidden_states: list[Tensor] = []
        self._see_layer = see_layer

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        """Keep the hidden states."""
        self.hidden_states.append(hidden_BLD)

    def attention(
        self, layer: int, inputs: tuple[Tensor, Tensor, Tensor], out_BLHK: Tensor, visibility: Visibility
    ) -> None:
        """Show the layer to whoever asked, so that nothing of it has to be kept."""
        if self._see_layer is not None:
            self._see_layer(layer, *inputs)


class HiddenErrors:
    """An ``Observer`` that measures hidden states against those of another pass.

    ``errors[n]`` is |g_n - h_n|_F / |h_n|_F of the hidden states numbered n, h_n the exact ones.
    """

    def __init__(self, exact: Sequence[Tensor]) -> None:
        self.errors: list[float] = []
        self._exact = exact

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        """Measure the hidden states."""
        exact_BLD = self._exact[layer].double()
        error = (hidden_BLD.double() - exact_BLD).square().sum()
        self.errors.append(relative_norm(error, exact_BLD.square().sum()).item())

    def attention(
        self, layer: int, inputs: tuple[Tensor, Tensor, Tensor], out_BLHK: Tensor, visibility: Visibility
    ) -> None:
        """Ignore what lies between the hidden states."""
