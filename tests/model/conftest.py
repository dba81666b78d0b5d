"""Small models of every mechanism."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from proteinlm.attention import (
    AttentionConfig,
    BigBirdConfig,
    FavorConfig,
    IdentityConfig,
    LinearConfig,
    LshConfig,
    ScatterbrainConfig,
    SoftmaxConfig,
    WindowConfig,
)
from proteinlm.model import MaskedLM, ModelConfig

LENGTH = 23

# every form of attention, with blocks, buckets and reach well below LENGTH: otherwise all of them see everything
SMALL: dict[str, AttentionConfig] = {
    "softmax": SoftmaxConfig(),
    "shared softmax": SoftmaxConfig(shared_query_key=True),
    "favor": FavorConfig(num_random_features=16),
    "linear": LinearConfig(),
    "window": WindowConfig(window=3),
    "bigbird": BigBirdConfig(block_length=3, num_random_blocks=1),
    "lsh": LshConfig(num_hashes=2, chunk_length=4),
    "separate lsh": LshConfig(shared_query_key=False, chunk_length=4, num_sampled_keys=5),
    "scatterbrain": ScatterbrainConfig(num_random_features=8, block_length=4),
    "identity": IdentityConfig(),
}


@pytest.fixture(params=["softmax", "favor", "lsh"])
def attention(request: pytest.FixtureRequest) -> AttentionConfig:
    return {
        "softmax": SoftmaxConfig(),
        "favor": FavorConfig(num_random_features=32),
        "lsh": LshConfig(num_hashes=2, chunk_length=4),
    }[request.param]


@pytest.fixture
def build() -> Callable[..., MaskedLM]:
    def build(attention: AttentionConfig, **settings) -> MaskedLM:
        sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "feed_forward_size": 48} | settings
        return MaskedLM(ModelConfig(attention=attention, **sizes), seed=3).to(torch.float64)

    return build


def residues(length: int, seed: int = 0) -> torch.Tensor:
    """Return token ids of standard residues, (1, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 24, (1, length), generator=generator)


def windows(seed: int = 0) -> torch.Tensor:
    """Return two windows of standard residues, (2, LENGTH)."""
    return torch.cat([residues(LENGTH, seed), residues(LENGTH, seed + 1)])


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made inside and still alive, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for storage in [x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)]:
            if storage._cdata not in self._known | before:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, name: int, num_bytes: int) -> None:
        self._known.discard(name)
        self.now -= num_bytes


def step_peak(model: MaskedLM, tokens_BL: Tensor) -> int:
    """Return the most bytes alive in a forward and backward pass, besides weights and their gradients."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    # random rows are drawn once and kept
    model.encode(tokens_BL)
    with LiveBytes() as live:
        model.encode(tokens_BL).sum().backward()
    return live.peak
