"""How far FAVOR+ is from exact attention, and when uniform attention would be no worse.

Relative error of the outputs, |out - exact| / |exact| over all positions, for Gaussian queries, keys
and values (1,024 positions, heads of 64) whose spread gives the wanted mean of |x|^2 + |y|^2, where
x = q / K^(1/4) and y = k / K^(1/4); median of 20 draws of the rows, float64. Each feature map is measured
with as many features, on queries and keys without direction and on concentrated ones: half of
the norm in their means, the rest falling as 1 / l^2 over the coordinates. Writes two CSVs and prints the
tables of docs/attention.md. No timing, so it gives the same numbers on a busy machine.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.attention import FavorAttention, FavorConfig
from proteinlm.ops.softmax_attention import softmax_attention

RESULTS = Path(__file__).resolve().parent / "results"
LENGTH, HEAD_DIM, NUM_DRAWS = 1024, 64, 20
NORMS = [0.5, 1, 2, 4, 8, 16]
NUMBERS = {
    "positive 64": FavorConfig(num_random_features=64),
    "positive 256": FavorConfig(num_random_features=256),
    "positive 1024": FavorConfig(num_random_features=1024),
    "hyperbolic 256": FavorConfig(num_random_features=256, feature_map="hyperbolic"),
}
MAPS = {
    "positive": FavorConfig(),
    "iid rows": FavorConfig(projection="iid"),
    "regularised": FavorConfig(projection="regularised"),
    "hyperbolic": FavorConfig(feature_map="hyperbolic"),
    "trigonometric": FavorConfig(feature_map="trigonometric"),
    "oprf": FavorConfig(feature_map="oprf"),
    "sderf": FavorConfig(feature_map="sderf"),
    "saderf": FavorConfig(feature_map="saderf"),
    "centred": FavorConfig(centring=True),
    "centred sderf": FavorConfig(feature_map="sderf", centring=True),
}


def relative_error(out: Tensor, exact: Tensor) -> float:
    return float((out - exact).norm() / exact.norm())


def draw_inputs(norm: float, *, is_concentrated: bool) -> list[Tensor]:
    """Return q, k and v; |x|^2 and |y|^2 have a mean of half of ``norm`` each."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, LENGTH, 1, HEAD_DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    if is_concentrated:
        spread_K = 1 / torch.arange(1, HEAD_DIM + 1, dtype=torch.float64)
        for x in (q, k):
            mean_K = torch.randn(HEAD_DIM, generator=generator, dtype=torch.float64)
            x.mul_(spread_K).add_(mean_K * (spread_K.norm() / mean_K.norm()))
        total = 2 * spread_K.square().sum()
    else:
        total = torch.tensor(float(HEAD_DIM), dtype=torch.float64)
    # x = q / K^(1/4), so that |q|^2 is to have the mean K^(1/2) norm / 2
    return [*(x * (HEAD_DIM**0.5 * norm / 2 / total).sqrt() for x in (q, k)), v]


@torch.no_grad()
def errors(norm: float, columns: dict[str, FavorConfig], *, is_concentrated: bool = False) -> dict[str, float]:
    q, k, v = draw_inputs(norm, is_concentrated=is_concentrated)
    exact = softmax_attention(q, k, v)
    found = {"uniform": relative_error(v.mean(1, keepdim=True).expand_as(v), exact)}
    for name, config in columns.items():
        attention = FavorAttention(config, head_dim=HEAD_DIM, layer=0, seed=0)
        drawn = []
        for attention.draw in range(NUM_DRAWS):
            drawn.append(relative_error(attention(q, k, v), exact))
        found[name] = statistics.median(drawn)
    return found


def write(name: str, first: str, table: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(table.values())))
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([first, *columns])
        writer.writerows([row, *(f"{cells[c]:.4f}" for c in columns)] for row, cells in table.items())
    print("| mean of \\|x\\|² + \\|y\\|² | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for row, cells in table.items():
        shown = [
            f"**{cells[c]:.3f}**" if c != "uniform" and cells[c] < cells["uniform"] else f"{cells[c]:.3f}"
            for c in columns
        ]
        print(f"| {row} | " + " | ".join(shown) + " |")


def main() -> None:
    write("favor_error", "mean_squared_norm_sum", {str(norm): errors(norm, NUMBERS) for norm in NORMS})
    by_map = {str(norm): errors(norm, MAPS) for norm in (1, 4)}
    by_map |= {f"{norm} concentrated": errors(norm, MAPS, is_concentrated=True) for norm in (1, 4, 8)}
    write("favor_maps", "mean_squared_norm_sum", by_map)


if __name__ == "__main__":
    main()
