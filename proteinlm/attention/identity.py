"""Identity attention: every position reads its own value. The limit of cost, and what context is measured from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from proteinlm.attention.choices import Choices
from proteinlm.attention.interface import Attention
from proteinlm.attention.unread import keep_in_graph
from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.visibility import Visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig:
    """Identity attention has nothing to set."""

    # no attention: each position gets its own value
    # when: the question is what attention is worth at all
    kind: Literal["identity"] = "identity"


class IdentityAttention(Attention):
    """out_i = v_i: each query sees one key, its own position.

    Where that key is hidden the query sees none, and its output is exactly 0 as everywhere. Queries and
    keys are read by nobody but stay in the graph, with gradients of 0: each parameter of a model
    still gets a gradient, as training on several processes expects.
    """

    is_exact = False

    def __init__(self, config: IdentityConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim)

    def _attend(
        self, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility, choices: Choices | None
    ) -> Tensor:
        out_BLHK = keep_in_graph(keep_in_graph(v_BLHK, q_BLHK), k_BLHK)
        mask_BL = visibility.key_mask_BL
        return out_BLHK if mask_BL is None else out_BLHK.masked_fill(~mask_BL[..., None, None], 0)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        blank, mask_BL = BlankMap(visibility, rows, q_BLHK[:, :, heads], k_BLHK), visibility.key_mask_BL
        diagonal_BHR = blank.map_BHRL.diagonal(blank.first, dim1=-2, dim2=-1)
        diagonal_BHR.copy_(torch.ones(()) if mask_BL is None else mask_BL[:, None, blank.first : blank.behind])
        return blank.map_BHRL
