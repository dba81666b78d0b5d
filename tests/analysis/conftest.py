"""Small real models on real proteins, compared once for all tests that only read the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from proteinlm.analysis.comparison import compare_checkpoint
from proteinlm.analysis.results import ComparisonConfig, ComparisonReport
from proteinlm.attention import FavorConfig
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint
from proteinlm.sequence.fasta import FastaRecord, read_fasta

SMALL = ComparisonConfig(num_random_features=(8, 64), num_draws=2, max_sequences=None, max_length=200)
HISTORY = [
    {"kind": "train", "step": 10, "loss": 2.91, "accuracy": 0.08},
    {"kind": "train", "step": 20, "loss": 2.88, "accuracy": 0.09},
    {"kind": "validation", "step": 20, "split": "validation_iid", "perplexity": 17.9, "unigram_perplexity": 18.1},
    {"kind": "validation", "step": 20, "split": "validation_ood", "perplexity": 18.0, "unigram_perplexity": 18.2},
]


@pytest.fixture(scope="session")
def sample(project_root: Path) -> Path:
    return project_root / "data_manifests" / "sample" / "uniprotkb_queries.fasta.xz"


@pytest.fixture(scope="session")
def proteins(sample: Path) -> list[FastaRecord]:
    """Three real proteins of up to 200 residues and a longer one."""
    short = islice((record for record in read_fasta([sample]) if len(record.residues) <= 200), 3)
    long = next(record for record in read_fasta([sample]) if 300 < len(record.residues) <= 400)
    return [*short, long]


def small_model(**settings) -> MaskedLM:
    """Return an untrained model whose weights are large enough for attention that is not flat."""
    attention = settings.pop("attention", FavorConfig(num_random_features=16))
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "feed_forward_size": 48, "max_temperature": 1.0}
    model = MaskedLM(ModelConfig(attention=attention, **(sizes | settings)), seed=3).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    return model


@pytest.fixture(scope="session")
def save_run() -> Callable[..., Path]:
    def save_run(folder: Path, model: MaskedLM | None = None, *, context: str = "isolated") -> Path:
        recipe = {"packing": {"window_length": 256, "context": context}}
        save_checkpoint(
            folder / "checkpoint",
            model or small_model(),
            recipe,
            step=20,
            metadata={"corpus": "sample", "training_token_counts": [1] * 33},
        )
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in HISTORY))
        return folder

    return save_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, save_run: Callable[..., Path]) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="session")
def report(run_folder: Path, proteins: list[FastaRecord]) -> ComparisonReport:
    return compare_checkpoint(proteins, run_folder, SMALL)
