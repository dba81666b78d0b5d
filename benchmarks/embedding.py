"""Embedding of long proteins: the same weights with FAVOR+ and with exact softmax, turn by turn.

A model of the quickstart's size with untrained weights embeds the longest protein of the sample (8,081
residues), whole, and several copies of it end to end. Median seconds and their ratio go to
benchmarks/results/embedding.csv. Run it alone on the machine: python benchmarks/run.py embedding
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from pathlib import Path

from machine import describe

from proteinlm.attention import FavorConfig, SoftmaxConfig
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.model import MaskedLM, ModelConfig
from proteinlm.sequence.fasta import read_fasta

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SAMPLE = ROOT / "data_manifests" / "sample" / "uniprotkb_sample.fasta.xz"
COPIES = [1, 2, 4]
TURNS = 3


def pretrained(attention: FavorConfig | SoftmaxConfig) -> PretrainedModel:
    settings = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, feed_forward_size=512, attention=attention)
    return PretrainedModel(MaskedLM(settings, seed=0).eval(), {}, 0, Path(), {})


def seconds(model: PretrainedModel, residues: str) -> float:
    start = time.perf_counter()
    list(model.embed([residues]))
    return time.perf_counter() - start


def main() -> None:
    longest = max((record.residues for record in read_fasta([SAMPLE])), key=len).decode()
    favor, softmax = pretrained(FavorConfig(num_random_features=128)), pretrained(SoftmaxConfig())
    rows = []
    for copies in COPIES:
        residues = longest * copies
        turns = [(seconds(favor, residues), seconds(softmax, residues)) for _ in range(TURNS)]
        medians = [statistics.median(times) for times in zip(*turns, strict=True)]
        rows.append([len(residues), *(f"{median:.3f}" for median in medians), f"{medians[1] / medians[0]:.2f}"])
        print(*rows[-1], sep="\t", flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "embedding.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["residues", "favor_seconds", "softmax_seconds", "times_faster"], *rows])
    (RESULTS / "embedding.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")


if __name__ == "__main__":
    main()
