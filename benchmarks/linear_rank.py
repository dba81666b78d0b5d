"""The rank of linear attention's map, beside that of softmax.

Gaussian queries and keys of unit variance, 512 positions, 4 heads, mean over heads, float64. The numerical rank
is the number of singular values above 1e-6 of the largest, the effective rank exp(entropy of the singular
values' shares). Linear attention weighs by phi(q)·phi(k), so its rank is at most the head's width, however
long the protein; decay and order lift that bound. Writes a CSV and prints the table of docs/attention.md. No
timing, so it gives the same numbers on a busy machine.

Source of the fault: Fan et al., CVPR 2025 (RALA), arXiv:2411.07635.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.attention import AttentionConfig, FavorConfig, LinearConfig, SoftmaxConfig, build_attention

RESULTS = Path(__file__).resolve().parent / "results"
LENGTH, HEADS = 512, 4
WIDTHS = [16, 32, 64, 128]
THRESHOLD = 1e-6
COLUMNS = ["head_dim", "mechanism", "numerical_rank", "effective_rank"]
MECHANISMS: list[tuple[str, AttentionConfig, bool]] = [
    ("softmax", SoftmaxConfig(), False),
    ("favor 256", FavorConfig(num_random_features=256), False),
    ("linear", LinearConfig(), False),
    ("linear, decay", LinearConfig(decay="distance"), False),
    ("linear, causal", LinearConfig(), True),
]


def ranks(map_HLL: Tensor) -> tuple[float, float]:
    """Return the numerical and the effective rank, means over heads."""
    singular_HL = torch.linalg.svdvals(map_HLL)
    numerical = (singular_HL > THRESHOLD * singular_HL[:, :1]).sum(-1).double().mean()
    shares_HL = singular_HL / singular_HL.sum(-1, keepdim=True)
    effective = torch.special.entr(shares_HL).sum(-1).exp().mean()
    return float(numerical), float(effective)


def measure(head_dim: int) -> list[tuple[int, str, float, float]]:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, LENGTH, HEADS, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for name, config, is_causal in MECHANISMS:
        attention = build_attention(config, head_dim=head_dim, layer=0, seed=0)
        found.append((head_dim, name, *ranks(attention.attention_map(q, k, is_causal=is_causal)[0])))
    return found


def main() -> None:
    rows = [row for head_dim in WIDTHS for row in measure(head_dim)]
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "linear_rank.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(
            (width, name, f"{numerical:g}", f"{effective:.1f}") for width, name, numerical, effective in rows
        )
    names = [name for name, _, _ in MECHANISMS]
    print("| head width | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for head_dim in WIDTHS:
        cells = [f"{numerical:.0f} / {effective:.0f}" for width, _, numerical, effective in rows if width == head_dim]
        print(f"| {head_dim} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
