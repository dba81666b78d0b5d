"""Small checkpoints of both mechanisms, and real proteins to embed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import proteinlm
from proteinlm.attention import FavorConfig, SoftmaxConfig
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint
from proteinlm.sequence.fasta import FastaRecord, read_fasta

MECHANISMS = {"softmax": SoftmaxConfig(), "favor": FavorConfig(num_random_features=16, redraw_interval=2)}


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a checkpoint of two layers of width 32, trained in windows of 512."""

    def make(mechanism: str = "favor", *, context: str = "isolated", weight_scale: float = 0.3) -> Path:
        settings = ModelConfig(
            num_layers=2, hidden_size=32, num_heads=2, feed_forward_size=48, attention=MECHANISMS[mechanism]
        )
        model = MaskedLM(settings, seed=3)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            # larger than first weights are, so that attention counts in every hidden state
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=weight_scale)
        path = tmp_path_factory.mktemp(mechanism)
        recipe: dict[str, Any] = {"packing": {"context": context, "window_length": 512}}
        save_checkpoint(path, model, recipe, step=5)
        return path

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint: Callable[..., Path]) -> Path:
    return make_checkpoint()


@pytest.fixture
def pretrained(checkpoint: Path) -> PretrainedModel:
    return proteinlm.load(checkpoint)


@pytest.fixture(params=["softmax", "favor"], scope="session")
def checkpoint_of_each(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint of each mechanism in turn."""
    return make_checkpoint(request.param)


@pytest.fixture(scope="session")
def queries(project_root: Path) -> Path:
    """404 real proteins that no training split holds."""
    return project_root / "data_manifests" / "sample" / "uniprotkb_queries.fasta.xz"


@pytest.fixture(scope="session")
def proteins(queries: Path) -> list[FastaRecord]:
    """The first 12 of them that have at most 400 residues."""
    short = (record for record in read_fasta([queries]) if len(record.residues) <= 400)
    return list(islice(short, 12))
