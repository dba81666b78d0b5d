"""Small runs on real proteins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from proteinlm import config
from proteinlm.recipe import Recipe

TABLE: dict[str, Any] = {
    "seed": 5,
    "packing": {"window_length": 512},
    "model": {
        "num_layers": 1,
        "hidden_size": 32,
        "num_heads": 2,
        "feed_forward_size": 32,
        "attention": {"kind": "favor", "num_random_features": 16, "redraw_interval": 2},
    },
    "schedule": {"num_steps": 6, "warmup_steps": 2},
    "training": {
        "windows_per_step": 4,
        "windows_per_micro_batch": 2,
        "log_interval": 1,
        "checkpoint_interval": 3,
    },
    "validation": {"interval": 3, "num_proteins": 10},
    "engine": {"kind": "local"},
}


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Return a recipe with some settings changed, given as ``model={"dropout": 0.1}``."""

    def build(**changes: Any) -> Recipe:
        table = {**TABLE}
        for name, value in changes.items():
            table[name] = {**TABLE.get(name, {}), **value} if isinstance(value, Mapping) else value
        return config.parse(Recipe, table, source="test")

    return build
