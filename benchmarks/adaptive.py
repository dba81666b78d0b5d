"""Where exact attention stops being cheaper than FAVOR+, and what `exact_below` makes of it.

Equal segments: one window of 8,192 positions packed with proteins of one length, computed exactly, segment by
segment, and by 256 features; 8 heads × 64, float32, forward and forward + backward, turn by turn. The
crossover is where the line through log ratio against log length passes 1.
Real proteins: windows packed from the sample that the project carries, with `exact_below` at several values,
beside FAVOR+ and exact attention: time, and the relative error of the output for queries and keys with a mean of
|x|^2 + |y|^2 of 2, where x = q / K^(1/4) and y = k / K^(1/4). Writes adaptive_segments.csv, adaptive_windows.csv
and a picture. Run it alone: python benchmarks/run.py adaptive
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from machine import describe
from torch import Tensor

from proteinlm.attention import FavorConfig, SoftmaxConfig, build_attention
from proteinlm.batches.packing import PackingConfig, plan_windows
from proteinlm.sequence import read_fasta

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLE = Path(__file__).resolve().parents[1] / "data_manifests" / "sample" / "uniprotkb_sample.fasta.xz"
WINDOW, HEADS, HEAD_DIM = 8192, 8, 64
SEGMENT_LENGTHS = [64, 128, 256, 512, 724, 1024, 1448, 2048]
THRESHOLDS = [0, 256, 512, 768, 1024, 2048]
NUM_WINDOWS, TURNS = 4, 9
PASSES = ["forward", "forward+backward"]

Attend = Callable[..., Tensor]


def inputs_of(generator: torch.Generator) -> list[Tensor]:
    """Return q, k, v and the weights of the output; |x|^2 and |y|^2 have a mean of 1 each."""
    q, k, v, weights = (torch.randn(1, WINDOW, HEADS, HEAD_DIM, generator=generator) for _ in range(4))
    scale = HEAD_DIM**-0.25
    return [q * scale, k * scale, v, weights]


def call(attend: Attend, which: str, inputs: Sequence[Tensor], cu_seqlens: Tensor) -> Callable[[], object]:
    *qkv, weights = inputs
    if which == "forward":
        return torch.no_grad()(lambda: attend(*qkv, cu_seqlens=cu_seqlens))
    leaves = [x.detach().requires_grad_() for x in qkv]
    return lambda: torch.autograd.grad(attend(*leaves, cu_seqlens=cu_seqlens), leaves, weights)


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS + 2):
        for name, run in calls.items():
            start = time.perf_counter()
            run()
            if turn > 1:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def mechanisms() -> dict[str, Attend]:
    """Return exact attention, and FAVOR+ with each threshold."""
    configs = {"exact": SoftmaxConfig()} | {f"{n}": FavorConfig(exact_below=n) for n in THRESHOLDS}
    return {name: build_attention(c, head_dim=HEAD_DIM, layer=0, seed=0) for name, c in configs.items()}


def equal_segments() -> list[list[object]]:
    attend, rows = mechanisms(), []
    inputs = inputs_of(torch.Generator().manual_seed(0))
    for which in PASSES:
        for length in SEGMENT_LENGTHS:
            ends = [*range(0, WINDOW, length), WINDOW]
            cu_seqlens = torch.tensor(ends, dtype=torch.int32)
            calls = {name: call(attend[name], which, inputs, cu_seqlens) for name in ("exact", "0")}
            found = medians(calls)
            seconds = [f"{found[name]:.4g}" for name in calls]
            rows.append([which, length, *seconds, round(found["exact"] / found["0"], 3)])
            print(*rows[-1], sep="\t", flush=True)
    return rows


def crossover(rows: Sequence[Sequence[object]], which: str) -> float:
    """Return the length at which both cost the same, between the two measured lengths around it."""
    points = [(math.log(float(str(r[1]))), math.log(float(str(r[4])))) for r in rows if r[0] == which]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 <= 0 < y1:
            return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
    return math.nan


def sample_windows() -> list[Tensor]:
    """Return the bounds of some full windows of the carried sample."""
    lengths = numpy.array([len(record.residues) for record in read_fasta([SAMPLE])], dtype=numpy.int64)
    order = numpy.random.default_rng(0).permutation(len(lengths))
    plan = plan_windows(lengths, PackingConfig(window_length=WINDOW), order=order)
    bounds = []
    for window in range(NUM_WINDOWS):
        ends = [0]
        for _, begin, end in plan.pieces(window):
            ends.append(ends[-1] + end - begin)
        bounds.append(torch.tensor([*ends, WINDOW] if ends[-1] < WINDOW else ends, dtype=torch.int32))
    return bounds


def real_windows() -> list[list[object]]:
    attend, windows, rows = mechanisms(), sample_windows(), []
    inputs = inputs_of(torch.Generator().manual_seed(1))
    errors = {name: relative_error(one, attend["exact"], inputs, windows) for name, one in attend.items()}
    for which in PASSES:
        calls = {name: _all(one, which, inputs, windows) for name, one in attend.items()}
        for name, seconds in (found := medians(calls)).items():
            mechanism = "softmax" if name == "exact" else "favor" if name == "0" else f"favor, exact below {name}"
            times_faster = round(found["exact"] / seconds, 3)
            rows.append([which, mechanism, f"{seconds / NUM_WINDOWS:.4g}", times_faster, f"{errors[name]:.4f}"])
            print(*rows[-1], sep="\t", flush=True)
    return rows


def _all(one: Attend, which: str, inputs: Sequence[Tensor], windows: Sequence[Tensor]) -> Callable[[], object]:
    calls = [call(one, which, inputs, cu_seqlens) for cu_seqlens in windows]
    return lambda: [run() for run in calls]


@torch.no_grad()
def relative_error(one: Attend, exact: Attend, inputs: Sequence[Tensor], windows: Sequence[Tensor]) -> float:
    squares = [0.0, 0.0]
    for cu_seqlens in windows:
        wanted = exact(*inputs[:3], cu_seqlens=cu_seqlens)
        found = one(*inputs[:3], cu_seqlens=cu_seqlens)
        squares[0] += float((found - wanted).double().square().sum())
        squares[1] += float(wanted.double().square().sum())
    return math.sqrt(squares[0] / squares[1])


def draw(rows: Sequence[Sequence[object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    for which, colour in zip(PASSES, ("#0072B2", "#D55E00"), strict=True):
        series = [row for row in rows if row[0] == which]
        axis.plot([r[1] for r in series], [float(str(r[4])) for r in series], "o-", color=colour, label=which)
    axis.axhline(1, color="#6b7280", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="length of the segments", ylabel="time of exact attention / FAVOR+")
    axis.set_xticks(SEGMENT_LENGTHS, [f"{n:,}" for n in SEGMENT_LENGTHS], rotation=30)
    axis.minorticks_off()
    axis.grid(color="#e3e6ea")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=144)


def write(name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    segments = equal_segments()
    for which in PASSES:
        print(f"{which}: as fast as each other at {crossover(segments, which):.0f} positions")
    columns = ["pass", "segment_length", "exact_seconds", "favor_seconds", "exact_over_favor"]
    write("adaptive_segments", columns, segments)
    columns = ["pass", "mechanism", "seconds_per_window", "times_faster_than_softmax", "relative_error"]
    write("adaptive_windows", columns, real_windows())
    (RESULTS / "adaptive.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")
    draw(segments, RESULTS / "adaptive.png")


if __name__ == "__main__":
    main()
