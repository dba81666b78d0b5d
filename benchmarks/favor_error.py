"""How far FAVOR+ is from exact attention, and when uniform attention would be no worse.

Relative error of the outputs, |out - exact| / |exact| over all positions, for Gaussian queries, keys
and values (1,024 positions, heads of 64) whose spread gives the wanted mean of |x|^2 + |y|^2, where
x = q / K^(1/4) and y = k / K^(1/4); median of 20 draws of the rows, float64. Writes a CSV and prints
the table of docs/attention.md. No timing, so it gives the same numbers on a busy machine.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.ops.random_features import FeatureMap, favor_attention, feature_rows, projection_rows
from proteinlm.ops.softmax_attention import softmax_attention

RESULTS = Path(__file__).resolve().parent / "results"
LENGTH, HEAD_DIM, NUM_DRAWS = 1024, 64, 20
NORMS = [0.5, 1, 2, 4, 8, 16]
FEATURES: list[tuple[FeatureMap, int]] = [
    ("positive", 64),
    ("positive", 256),
    ("positive", 1024),
    ("hyperbolic", 256),
]


def relative_error(out: Tensor, exact: Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


def errors(norm: float) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, LENGTH, 1, HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    # |x|^2 = |q|^2 / sqrt(K) has mean K^(1/2) for unit variance, and half of the norm is wanted
    q, k = (x * (norm / 2 / HEAD_DIM**0.5) ** 0.5 for x in (q, k))
    exact = softmax_attention(q, k, v)
    found = {"uniform": relative_error(v.mean(1, keepdim=True).expand_as(v), exact)}
    for feature_map, num_features in FEATURES:
        num_rows = num_features // (2 if feature_map == "hyperbolic" else 1)
        draws = [
            projection_rows(num_rows, HEAD_DIM, projection="orthogonal", seed=0, layer=0, redraw_index=i)
            for i in range(NUM_DRAWS)
        ]
        found[f"{feature_map} {num_features}"] = statistics.median(
            relative_error(favor_attention(q, k, v, feature_rows(rows, feature_map)), exact) for rows in draws
        )
    return found


def main() -> None:
    table = {norm: errors(norm) for norm in NORMS}
    columns = list(table[NORMS[0]])
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "favor_error.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["mean_squared_norm_sum", *columns])
        writer.writerows([norm, *(f"{row[c]:.4f}" for c in columns)] for norm, row in table.items())
    print("| mean of \\|x\\|² + \\|y\\|² | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for norm, row in table.items():
        cells = [
            f"**{row[c]:.3f}**" if c != "uniform" and row[c] < row["uniform"] else f"{row[c]:.3f}" for c in columns
        ]
        print(f"| {norm} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
