"""Time and memory of FAVOR+ beside exact attention: 8 heads of 64, batch 1, float32, m = 256.

Both mechanisms run side by side in one process, turn by turn, so that a slow moment of the machine
hits both; medians and their ratios are reported. Peak memory is what a fresh process needs beyond
its inputs and a small warm-up. Run it alone on the machine.

    python benchmarks/run.py attention          measures everything, about six minutes on two cores
    python benchmarks/attention.py --up-to 4096 measures the shorter lengths and writes nothing
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from proteinlm.attention import Attention, FavorConfig, SoftmaxConfig, build_attention

RESULTS = Path(__file__).resolve().parent / "results"
HEADS, HEAD_DIM, NUM_FEATURES = 8, 64, 256
SHARED_LENGTHS = [512, 1024, 2048, 4096, 8192, 16384]
LONG_LENGTHS = [32768, 65536, 131072]
PASSES = ["forward", "forward+backward"]
COLUMNS = ["pass", "length", "mechanism", "median_seconds", "times_faster_than_softmax", "peak_extra_bytes"]
# seconds that the turns of one length may take, and how many there are at least and at most
BUDGET, FEWEST, MOST = 6.0, 3, 25


def mechanism(kind: str) -> Attention:
    config = SoftmaxConfig() if kind == "softmax" else FavorConfig(num_random_features=NUM_FEATURES)
    return build_attention(config, head_dim=HEAD_DIM, layer=0, seed=0)


def call(kind: str, which: str, length: int) -> Callable[[], object]:
    """Return a function that runs one pass on inputs of its own."""
    attention = mechanism(kind)
    generator = torch.Generator().manual_seed(0)
    sizes = (1, length, HEADS, HEAD_DIM)
    inputs = [torch.randn(sizes, generator=generator).requires_grad_(which != "forward") for _ in range(3)]
    weights = torch.randn(sizes, generator=generator)
    if which == "forward":
        return torch.no_grad()(lambda: attention(*inputs))
    return lambda: torch.autograd.grad(attention(*inputs), inputs, weights)


def measure_times(kinds: list[str], which: str, length: int) -> dict[str, float]:
    """Return the median seconds of each kind, measured turn by turn."""
    calls = {kind: call(kind, which, length) for kind in kinds}
    warm = sum(_seconds(run) for run in calls.values())
    turns = min(MOST, max(FEWEST, int(BUDGET / warm)))
    times = [{kind: _seconds(run) for kind, run in calls.items()} for _ in range(turns)]
    return {kind: statistics.median(turn[kind] for turn in times) for kind in kinds}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_extra_bytes(kind: str, which: str, length: int) -> int:
    """Return by how much one pass raises the peak memory of a fresh process."""
    command = [sys.executable, __file__, "--peak", kind, which, str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, which: str, length: int) -> None:
    call(kind, which, 64)()
    run = call(kind, which, length)
    # getrusage would also count the peak of the process that started this one
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    kept = run()
    print(_status_bytes("VmHWM") - before)
    del kept


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(lengths: list[int], *, with_memory: bool) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for which in PASSES:
        for length in lengths:
            kinds = ["softmax", "favor"] if length in SHARED_LENGTHS else ["favor"]
            medians = measure_times(kinds, which, length)
            for kind in kinds:
                ratio = medians["softmax"] / medians[kind] if "softmax" in medians else None
                peak = peak_extra_bytes(kind, which, length) if with_memory else None
                values = [which, length, kind, round(medians[kind], 6), ratio and round(ratio, 3), peak]
                rows.append(dict(zip(COLUMNS, values, strict=True)))
                print(*(f"{value!s:>18}" for value in values), flush=True)
    return rows


def draw(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    colours = {"softmax": "#D55E00", "favor": "#0072B2"}
    names = {"softmax": "exact softmax", "favor": f"FAVOR+, m = {NUM_FEATURES}"}
    panels = [("median_seconds", 1.0, "seconds"), ("peak_extra_bytes", 2.0**-20, "peak extra memory, MiB")]
    for axis, (column, unit, label) in zip(axes, panels, strict=True):
        for kind, colour in colours.items():
            for which, style in zip(PASSES, ("-", "--"), strict=True):
                series = [row for row in rows if row["mechanism"] == kind and row["pass"] == which and row[column]]
                lengths, heights = [r["length"] for r in series], [float(str(r[column])) * unit for r in series]
                axis.plot(lengths, heights, style, marker="o", ms=4, color=colour, label=f"{names[kind]}, {which}")
        axis.set(xscale="log", yscale="log", xlabel="length, residues", ylabel=label)
        axis.set_xticks(ticks := SHARED_LENGTHS[::2] + LONG_LENGTHS[::2], [f"{t:,}" for t in ticks], rotation=30)
        axis.minorticks_off()
        axis.grid(color="#e3e6ea")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{HEADS} heads of {HEAD_DIM}, batch 1, float32, {torch.get_num_threads()} threads", fontsize=10)
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
        measure([n for n in SHARED_LENGTHS + LONG_LENGTHS if n <= options.up_to], with_memory=True)
        return
    write(measure(SHARED_LENGTHS + LONG_LENGTHS, with_memory=True))


def write(rows: list[dict[str, object]]) -> None:
    from machine import describe

    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "attention.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")
    draw(rows, RESULTS / "attention.png")
    print("wrote benchmarks/results/attention.csv, attention.png, attention.machine.json")


if __name__ == "__main__":
    main()
