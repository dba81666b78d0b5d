"""Causal FAVOR+ token by token: a state of fixed size in place of the keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.random_features.causal import CHUNK_LENGTH
from proteinlm.ops.random_features.features import check_rows, log_features
from proteinlm.ops.visibility import check_inputs


@dataclass(frozen=True, slots=True, eq=False)
class FavorState:
    """What the tokens so far leave behind, float32 or float64.

    c_r = max over visible keys j of l_jr, hugely negative before the first; S_r = sum_j exp(l_jr - c_r) (v_j, 1), V
    being K + 1. The rows come along, so that a sequence ends with those it began with.
    """

    maxima_BHM: Tensor
    sums_BHMV: Tensor
    rows_MK: Tensor

    def add(self, logarithms_BHCM: Tensor, v_BHCK: Tensor) -> FavorState:
        """Return the state with C more tokens, whose log-features are minus infinity where they are hidden."""
        grown_BHM = torch.maximum(self.maxima_BHM, logarithms_BHCM.amax(2))
        shrunk_BHMV = self.sums_BHMV * (self.maxima_BHM - grown_BHM).exp_()[..., None]
        v_BHCV = torch.cat((v_BHCK, v_BHCK.new_ones(*v_BHCK.shape[:-1], 1)), dim=-1)
        added_BHMV = (logarithms_BHCM - grown_BHM[:, :, None]).exp_().mT @ v_BHCV
        return FavorState(grown_BHM, shrunk_BHMV.add_(added_BHMV), self.rows_MK)


@torch.no_grad()
def favor_state(k_BLHK: Tensor, v_BLHK: Tensor, rows_MK: Tensor, *, key_mask_BL: Tensor | None = None) -> FavorState:
    """Return the state after L tokens, 0 or more, of k, v (B, L, H, K); hidden ones add nothing.

    Raises:
        ShapeError: if the arguments do not fit together.
    """
    check_inputs(k_BLHK, None, v_BLHK, key_mask_BL=key_mask_BL)
    num_windows, length, num_heads, head_dim = k_BLHK.shape
    check_rows(rows_MK, head_dim)
    dtype = accumulation_dtype(k_BLHK, v_BLHK)
    rows_MK = rows_MK.to(k_BLHK.device, dtype)
    sizes = (num_windows, num_heads, len(rows_MK))
    state = FavorState(
        rows_MK.new_full(sizes, torch.finfo(dtype).min / 8), rows_MK.new_zeros(*sizes, head_dim + 1), rows_MK
    )
    with torch.autocast(k_BLHK.device.type, enabled=False):
        for start in range(0, length, CHUNK_LENGTH):
            chunk = slice(start, start + CHUNK_LENGTH)
            k_BHCK, v_BHCK = (x[:, chunk].transpose(1, 2).to(dtype) for x in (k_BLHK, v_BLHK))
            logarithms_BHCM = log_features(k_BHCK * head_dim**-0.25, rows_MK)
            if key_mask_BL is not None:
                hidden_B1C1 = ~key_mask_BL[:, None, chunk, None]
                logarithms_BHCM = logarithms_BHCM.masked_fill(hidden_B1C1, -torch.inf)
                v_BHCK = v_BHCK.masked_fill(hidden_B1C1, 0)
            state = state.add(logarithms_BHCM, v_BHCK)
    return state


@torch.no_grad()
def favor_step(q_BHK: Tensor, k_BHK: Tensor, v_BHK: Tensor, state: FavorState) -> tuple[Tensor, FavorState]:
    """Return what one more token reads, in the dtype of ``v_BHK``, and the state behind it; time O(M K) a head."""
    dtype = state.rows_MK.dtype
    with torch.autocast(q_BHK.device.type, enabled=False):
        x_BHK, y_BHK = (x.to(dtype) * x.shape[-1] ** -0.25 for x in (q_BHK, k_BHK))
        state = state.add(log_features(y_BHK, state.rows_MK)[:, :, None], v_BHK.to(dtype)[:, :, None])
        weights_BHM = (x_BHK @ state.rows_MK.T + state.maxima_BHM).softmax(-1)
        # each feature's normaliser is at least 1: its maximum is one of its terms
        read_BHV = (weights_BHM[..., None, :] @ state.sums_BHMV)[..., 0, :]
    return (read_BHV[..., :-1] / read_BHV[..., -1:]).to(v_BHK.dtype), state
