"""Causal linear attention token by token: a state of fixed size in place of the keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.ops.feature_sums import Normalisation, inverse_rms, inverse_sum
from proteinlm.ops.linear_attention.eager import CHUNK_LENGTH, check_decay
from proteinlm.ops.linear_attention.features import features, with_ones
from proteinlm.ops.precision import accumulation_dtype
from proteinlm.ops.visibility import check_inputs


@dataclass(frozen=True, slots=True, eq=False)
class LinearState:
    """What the tokens so far leave behind: S_i = gamma S_{i-1} + phi(k_i) v_i^T, float32 or float64.

    With the normalisation "division" V is K + 1 and the last column sums up the normaliser, else V is K.
    """

    sums_BHKV: Tensor


@torch.no_grad()
def linear_state(
    k_BLHK: Tensor,
    v_BLHK: Tensor,
    *,
    normalisation: Normalisation = "division",
    decay_H: Tensor | None = None,
    key_mask_BL: Tensor | None = None,
) -> LinearState:
    """Return the state after L tokens, 0 or more, of k, v (B, L, H, K); hidden ones add nothing, and count as distance.

    Raises:
        ShapeError: if the arguments do not fit together, or there is not one decay for each head.
    """
    check_inputs(k_BLHK, None, v_BLHK, key_mask_BL=key_mask_BL)
    num_windows, length, num_heads, head_dim = k_BLHK.shape
    check_decay(decay_H, num_heads)
    dtype = accumulation_dtype(k_BLHK, v_BLHK)
    width = head_dim + (normalisation == "division")
    sums_BHKV = torch.zeros(num_windows, num_heads, head_dim, width, dtype=dtype, device=k_BLHK.device)
    with torch.autocast(k_BLHK.device.type, enabled=False):
        for start in range(0, length, CHUNK_LENGTH):
            chunk = slice(start, min(start + CHUNK_LENGTH, length))
            k_BHCK, v_BHCK = (x[:, chunk].transpose(1, 2).to(dtype, copy=True) for x in (k_BLHK, v_BLHK))
            phi_BHCK = features(k_BHCK)
            if key_mask_BL is not None:
                hidden_B1C1 = ~key_mask_BL[:, None, chunk, None]
                phi_BHCK.masked_fill_(hidden_B1C1, 0)
                v_BHCK.masked_fill_(hidden_B1C1, 0)
            if decay_H is not None:
                steps_C = torch.arange(length - 1 - chunk.start, length - 1 - chunk.stop, -1, device=k_BLHK.device)
                phi_BHCK *= torch.exp(decay_H.to(steps_C.device)[:, None] * steps_C).to(dtype)[..., None]
            sums_BHKV += phi_BHCK.mT @ (with_ones(v_BHCK) if normalisation == "division" else v_BHCK)
    return LinearState(sums_BHKV)


@torch.no_grad()
def linear_step(
    q_BHK: Tensor,
    k_BHK: Tensor,
    v_BHK: Tensor,
    state: LinearState,
    *,
    normalisation: Normalisation = "division",
    decay_H: Tensor | None = None,
) -> tuple[Tensor, LinearState]:
    """Return what one more token reads, in the dtype of ``v_BHK``, and the state behind it; time O(K^2) a head."""
    dtype = state.sums_BHKV.dtype
    with torch.autocast(q_BHK.device.type, enabled=False):
        phi_q_BHK, phi_k_BHK = (features(x.to(dtype)) for x in (q_BHK, k_BHK))
        v_BHV = with_ones(v_BHK.to(dtype)) if normalisation == "division" else v_BHK.to(dtype)
        sums_BHKV = state.sums_BHKV
        if decay_H is not None:
            sums_BHKV = sums_BHKV * decay_H.to(sums_BHKV.device).exp().to(dtype)[:, None, None]
        sums_BHKV = sums_BHKV + phi_k_BHK[..., None] * v_BHV[..., None, :]
        read_BHV = (phi_q_BHK[..., None, :] @ sums_BHKV)[..., 0, :]
        if normalisation == "division":
            out_BHK = read_BHV[..., :-1] * inverse_sum(read_BHV[..., -1:])
        else:
            out_BHK = read_BHV * inverse_rms(read_BHV)
    return out_BHK.to(v_BHK.dtype), LinearState(sums_BHKV)
