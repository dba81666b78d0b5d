"""Time and memory of every attention mechanism: 8 heads of 64, batch 1, float32, m = 256.

All kinds of attention run side by side in one process on the same inputs, turn by turn, so that a slow
moment of the machine hits all; medians and their ratios are reported. Each kind has the default settings
of its config. Exact attention stops where it takes too long. Slopes are those of a straight line through
log time against log length from 16,384 to 131,072, of medians and of the fastest turns: what a host takes to supply
pages for large results only adds to a time. Peak memory is what a fresh process needs beyond its
inputs and a small warm-up. Run it alone on the machine.

    python benchmarks/run.py attention          measures everything, about ten minutes on two cores
    python benchmarks/attention.py --up-to 4096 measures the shorter lengths and writes nothing

performer-pytorch 1.1.4 takes part where it is installed, which proteinlm never asks for. Give it an
environment of its own and run the benchmark there:

    python -m venv .venv-performer
    .venv-performer/bin/pip install -e . performer-pytorch==1.1.4
    .venv-performer/bin/python benchmarks/run.py attention
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import process_peak
from torch import Tensor

from proteinlm.attention import MECHANISMS, build_attention

RESULTS = Path(__file__).resolve().parent / "results"
HEADS, HEAD_DIM, NUM_FEATURES = 8, 64, 256
LENGTHS = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
PASSES = ["forward", "forward+backward"]
PERFORMER = "performer-pytorch"
# quadratic in time, or all features of all heads at once: longer is out of reach; or too slow to wait for
LONGEST = {("softmax", PASSES[0]): 16384, ("softmax", PASSES[1]): 8192} | {
    (kind, p): 16384 for kind in (PERFORMER, "bigbird", "lsh", "scatterbrain") for p in PASSES
}
SLOPE_FROM = 16384
PEAK_LENGTHS = [1024, 16384, 131072]
RIVALS = ["softmax", PERFORMER]
COLUMNS = [
    "pass",
    "length",
    "mechanism",
    "median_seconds",
    "fastest_seconds",
    "times_faster_than_softmax",
    "times_faster_than_performer",
    "peak_extra_bytes",
]
# seconds that the turns of one length are to take, and how many there are at least and at most
BUDGET, FEWEST, MOST = 4.0, 5, 25

Row = dict[str, object]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def kinds_at(which: str, length: int) -> list[str]:
    """Return the mechanisms that one pass over this length is measured for."""
    kinds = [*MECHANISMS, *([PERFORMER] if importlib.util.find_spec("performer_pytorch") else [])]
    return [kind for kind in kinds if length <= LONGEST.get((kind, which), length)]


def mechanism(kind: str) -> Attend:
    if kind == PERFORMER:
        from performer_pytorch import FastAttention

        fast = FastAttention(dim_heads=HEAD_DIM, nb_features=NUM_FEATURES)
        return lambda q, k, v: fast(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    settings = {"num_random_features": NUM_FEATURES} if kind == "favor" else {}
    return build_attention(MECHANISMS[kind][0](**settings), head_dim=HEAD_DIM, layer=0, seed=0)


def draw_inputs(length: int) -> list[Tensor]:
    """Return q, k, v and what weighs the output in the backward pass."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, length, HEADS, HEAD_DIM, generator=generator) for _ in range(4)]


def call(kind: str, which: str, inputs: list[Tensor]) -> Callable[[], object]:
    """Return a function that runs one pass."""
    attention, (*qkv, weights) = mechanism(kind), inputs
    if which == "forward":
        return torch.no_grad()(lambda: attention(*qkv))
    leaves = [x.detach().requires_grad_() for x in qkv]
    return lambda: torch.autograd.grad(attention(*leaves), leaves, weights)


def measure_times(kinds: list[str], which: str, length: int) -> dict[str, list[float]]:
    """Return the seconds of each kind, measured turn by turn."""
    inputs = draw_inputs(length)
    calls = {kind: call(kind, which, inputs) for kind in kinds}
    warm = sum(_seconds(run) for run in calls.values())
    turns = min(MOST, max(FEWEST, int(BUDGET / warm)))
    times = [{kind: _seconds(run) for kind, run in calls.items()} for _ in range(turns)]
    return {kind: [turn[kind] for turn in times] for kind in kinds}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_extra_bytes(kind: str, which: str, length: int) -> int:
    """Return by how much one pass raises the peak memory of a fresh process."""
    command = [sys.executable, __file__, "--peak", kind, which, str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, which: str, length: int) -> None:
    call(kind, which, draw_inputs(64))()
    run = call(kind, which, draw_inputs(length))
    print(process_peak(run)[0])


def measure(lengths: list[int], *, peak_lengths: list[int]) -> list[Row]:
    rows: list[Row] = []
    for which in PASSES:
        for length in lengths:
            times = measure_times(kinds_at(which, length), which, length)
            medians = {kind: statistics.median(taken) for kind, taken in times.items()}
            for kind, median in medians.items():
                ratios = [round(medians[rival] / median, 3) if rival in medians else None for rival in RIVALS]
                peak = peak_extra_bytes(kind, which, length) if length in peak_lengths else None
                seconds = [float(f"{value:.4g}") for value in (median, min(times[kind]))]
                values = [which, length, kind, *seconds, *ratios, peak]
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                print(*(f"{'' if value is None else value!s:>18}" for value in values), flush=True)
    return rows


def slopes(rows: list[Row], shortest: int = SLOPE_FROM) -> list[Row]:
    """Return the slope of log time against log length of each kind that has all lengths from ``shortest``."""
    longest = max(int(str(row["length"])) for row in rows)
    found: list[Row] = []
    for which in PASSES:
        for kind in MECHANISMS:
            series = [row for row in rows if (row["pass"], row["mechanism"]) == (which, kind)]
            lengths = [int(str(row["length"])) for row in series if int(str(row["length"])) >= shortest]
            if len(lengths) < 2 or lengths[-1] < longest:
                continue
            row: Row = {"pass": which, "mechanism": kind, "from": lengths[0], "to": longest}
            for name, column in (("slope", "median_seconds"), ("slope_of_fastest", "fastest_seconds")):
                times = [float(str(one[column])) for one in series[-len(lengths) :]]
                row[name] = round(_power(lengths, times), 3)
            print(f"{which} of {kind}: time grows with length to the power {row['slope']} ({row['slope_of_fastest']})")
            found.append(row)
    return found


def _power(lengths: list[int], times: list[float]) -> float:
    return statistics.linear_regression([*map(math.log, lengths)], [*map(math.log, times)]).slope


COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999", "#F0E442"]
NAMES = {"softmax": "exact softmax", "favor": f"FAVOR+, m = {NUM_FEATURES}", "bigbird": "BigBird"}


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    panels = [("median_seconds", 1.0, "seconds"), ("peak_extra_bytes", 2.0**-20, "peak extra memory, MiB")]
    for axis, (column, unit, label) in zip(axes, panels, strict=True):
        for i, kind in enumerate(dict.fromkeys(row["mechanism"] for row in rows)):
            for which, style in zip(PASSES, ("-", "--"), strict=True):
                series = [row for row in rows if row["mechanism"] == kind and row["pass"] == which and row[column]]
                lengths, heights = [r["length"] for r in series], [float(str(r[column])) * unit for r in series]
                name = NAMES.get(str(kind), kind) if which == "forward" else None
                axis.plot(lengths, heights, style, marker="o", ms=3.5, color=COLOURS[i % len(COLOURS)], label=name)
        axis.set(xscale="log", yscale="log", xlabel="length, residues", ylabel=label)
        axis.set_xticks(LENGTHS[::2], [f"{length:,}" for length in LENGTHS[::2]], rotation=30)
        axis.minorticks_off()
        axis.grid(color="#e3e6ea")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    title = f"{HEADS} heads of {HEAD_DIM}, batch 1, float32, {torch.get_num_threads()} threads; dashed: with backward"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--up-to", type=int, metavar="LENGTH", help="longest length; writes no results")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "PASS", "LENGTH"), help="print one peak and stop")
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak[0], options.peak[1], int(options.peak[2]))
        return
    if options.up_to:
        rows = measure([n for n in LENGTHS if n <= options.up_to], peak_lengths=PEAK_LENGTHS)
        slopes(rows, shortest=options.up_to // 8)
        return
    rows = measure(LENGTHS, peak_lengths=PEAK_LENGTHS)
    write(rows, slopes(rows))


def write(rows: list[Row], slope_rows: list[Row]) -> None:
    from machine import describe

    RESULTS.mkdir(exist_ok=True)
    for name, table in (("attention.csv", rows), ("attention_slopes.csv", slope_rows)):
        with (RESULTS / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    machine = describe()
    if importlib.util.find_spec("performer_pytorch"):
        machine[PERFORMER] = importlib.metadata.version(PERFORMER)
    (RESULTS / "attention.machine.json").write_text(json.dumps(machine, indent=2) + "\n")
    draw(rows, RESULTS / "attention.png")
    print("wrote attention.csv, attention_slopes.csv, attention.png and attention.machine.json to benchmarks/results")


if __name__ == "__main__":
    main()
