"""Exact softmax attention over all segments in one call, by torch's FlashAttention kernel for packed windows."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

from proteinlm.ops.visibility import Visibility

logger = logging.getLogger(__name__)


def missing(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> str | None:
    """Return what the kernel would need and does not find, or None if it can run."""
    device, dtype, head_dim = q_BLHK.device, kernel_dtype(q_BLHK, k_BLHK, v_BLHK), q_BLHK.shape[-1]
    if device.type != "cuda":
        return f"a CUDA device, and the inputs are on {device}"
    if not _is_in_torch():
        return f"torch.nn.attention.varlen, which torch {torch.__version__} does not have"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"a GPU of compute capability 8.0 or higher, and {device} is older"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"float16 or bfloat16, and the inputs are {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"heads whose width is a multiple of 8 up to 256, and it is {head_dim}"
    return None


def attend(q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, visibility: Visibility) -> Tensor:
    """Return out_BLHK, 0 in segments without a visible key, for at least one segment that has some.

    Queries of segments without a visible key, and all hidden keys, never enter the kernel.
    """
    # imported by need: older torch lacks it
    from torch.nn.attention.varlen import varlen_attn

    _announce()
    device, dtype = q_BLHK.device, kernel_dtype(q_BLHK, k_BLHK, v_BLHK)
    q_NHK, k_NHK, v_NHK = (x.flatten(0, 1).to(dtype) for x in (q_BLHK, k_BLHK, v_BLHK))
    segments, mask_T = visibility.segments, visibility.mask_T
    seen = [segment for segment in segments if segment.num_visible]
    if mask_T is not None:
        visible_N = mask_T.nonzero()[:, 0]
        k_NHK, v_NHK = k_NHK.index_select(0, visible_N), v_NHK.index_select(0, visible_N)
    lengths, counts = [len(segment) for segment in seen], [segment.num_visible for segment in seen]
    sizes = (_running(lengths, device), _running(counts, device), max(lengths), max(counts))
    queries_N = None
    if len(seen) < len(segments):
        queries_N = torch.cat([torch.arange(segment.start, segment.stop, device=device) for segment in seen])
    out_NHK = varlen_attn(q_NHK if queries_N is None else q_NHK.index_select(0, queries_N), k_NHK, v_NHK, *sizes)
    # with other options it would be a tuple
    assert isinstance(out_NHK, Tensor)
    if queries_N is not None:
        out_NHK = torch.zeros_like(q_NHK).index_copy(0, queries_N, out_NHK)
    return out_NHK.view_as(v_BLHK).to(v_BLHK.dtype)


def _running(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


def kernel_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which torch's own attention would run, autocast included."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors))


@functools.cache
def _is_in_torch() -> bool:
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


@functools.cache
def _announce() -> None:
    logger.info("exact attention over segments runs torch.nn.attention.varlen")
