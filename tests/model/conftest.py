"""Small models of every mechanism."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proteinlm.attention import AttentionConfig, FavorConfig, LshConfig, SoftmaxConfig
from proteinlm.model import MaskedLM, ModelConfig


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
