"""What a mechanism costs in a whole layer and in a whole training step, turn by turn on the same inputs.

Layer: one encoder block (d = 512, 8 heads, feed-forward 2,048), forward, for every kind of attention,
beside the same block with identity attention, whose projections all stay. Step: forward, backward and
update of a two-block model on one window, beside the step with exact softmax. Float32, batch 1,
m = 256. Results go to benchmarks/results/layers.csv. Run it alone: python benchmarks/run.py layers
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe

from proteinlm.attention import MECHANISMS
from proteinlm.model import MaskedLM, ModelConfig

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = [1024, 8192]
TURNS = 5


def model(kind: str, num_layers: int) -> MaskedLM:
    settings = {"num_random_features": 256} if kind == "favor" else {}
    return MaskedLM(
        ModelConfig(
            num_layers=num_layers,
            hidden_size=512,
            num_heads=8,
            feed_forward_size=2048,
            attention=MECHANISMS[kind][0](**settings),
        ),
        seed=0,
    )


def forward(kind: str, length: int) -> Callable[[], None]:
    one, tokens = model(kind, 1).eval(), torch.randint(4, 24, (1, length))

    @torch.no_grad()
    def run() -> None:
        one.encode(tokens)

    return run


def step(kind: str, length: int) -> Callable[[], None]:
    two, tokens = model(kind, 2), torch.randint(4, 24, (1, length))
    optimiser = torch.optim.AdamW(two.parameters(), lr=1e-4)

    def run() -> None:
        torch.nn.functional.cross_entropy(two(tokens)[0], tokens[0]).backward()
        optimiser.step()
        optimiser.zero_grad()

    return run


def measure(make: Callable[[str, int], Callable[[], None]], length: int) -> dict[str, float]:
    """Return the median seconds of each kind, all of them in turn."""
    runs = {kind: make(kind, length) for kind in MECHANISMS}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(TURNS + 1):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:
                times[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(values) for kind, values in times.items()}


def main() -> None:
    torch.manual_seed(0)
    rows = []
    for name, make, beside in (("layer forward", forward, "identity"), ("training step", step, "softmax")):
        for length in LENGTHS:
            for kind, seconds in (medians := measure(make, length)).items():
                rows.append([name, length, kind, f"{seconds:.4f}", beside, f"{seconds / medians[beside]:.3f}"])
                print(*rows[-1], sep="\t", flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "layers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["what", "length", "mechanism", "median_seconds", "beside", "ratio"], *rows])
    (RESULTS / "layers.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")


if __name__ == "__main__":
    main()
