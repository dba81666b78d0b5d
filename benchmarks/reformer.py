"""Memory and time of reversible trunks and chunked feed-forwards: table 3 of the Reformer's paper, as measured curves.

A masked language model (d = 256, 4 heads of 64, feed-forward 1,024; one window of random residues, 15 % of them
asked for; float32) computes loss and gradients, with six trunks: ordinary, reversible with kept buckets and exactly
reversible without, each with the feed-forward whole and in chunks of 128. Against depth, against length and
against LSH rounds, for LSH attention, FAVOR+ and exact softmax. Seconds are medians, taken turn by turn in
one process; ratios are those of turns side by side. Bytes are counted tensor by tensor, the same on a busy machine, and
for some models as a fresh process's peak; parameters, gradients and what the mechanism keeps between steps are
subtracted. At the end one training step (AdamW) of 12 layers, d = 512, at 65,536 positions, each in a process of
its own. Writes reformer.csv, reformer_long.csv and a picture. Run it alone on the machine.

    python benchmarks/run.py reformer             measures everything, about fifteen minutes on two cores
    python benchmarks/reformer.py --only curves   leaves out the steps at 65,536 positions, half of the time
    python benchmarks/reformer.py --only long     measures nothing else
    python benchmarks/reformer.py --small         small models; writes nothing

Source: Kitaev et al., ICLR 2020, arXiv:2001.04451.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import (
    COLOURS,
    RESULTS,
    Row,
    Run,
    figure,
    live_bytes,
    markdown,
    num_threads,
    process_peak,
    ratio,
    tidy,
    turns,
    write_machine,
    write_rows,
)

from proteinlm.attention import AttentionConfig, FavorConfig, LshConfig, SoftmaxConfig
from proteinlm.batches.loader import MaskedBatch
from proteinlm.batches.masking import NOT_CHOSEN
from proteinlm.model import MaskedLM, ModelConfig
from proteinlm.training.objective import MaskedLMObjective
from proteinlm.training.optimiser import OptimiserConfig, build_optimiser

HIDDEN, HEADS, INNER, FEED_FORWARD_CHUNK = 256, 4, 1024, 128
TRUNKS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "reversible": {"reversible": True},
    "exact": {"reversible": True, "reversible_precision": "exact"},
}
VARIANTS = {
    f"{name}{', chunked' if chunk else ''}": {**settings, "feed_forward_chunk": chunk}
    for chunk in (0, FEED_FORWARD_CHUNK)
    for name, settings in TRUNKS.items()
}
FEW = ["ordinary", "reversible", "exact", "exact, chunked"]
WARM_UP_LENGTH = 128
LONG_LENGTH, LONG_CHUNK = 65536, 1024
LONG_TRUNKS = {"reversible": TRUNKS["reversible"], "exact": TRUNKS["exact"]}


def attention(kind: str, rounds: int) -> AttentionConfig:
    if kind == "lsh":
        return LshConfig(num_hashes=rounds)
    return FavorConfig() if kind == "favor" else SoftmaxConfig()


@dataclass(frozen=True)
class Point:
    """What one model of a curve is."""

    kind: str
    depth: int
    length: int
    rounds: int = 4

    def model(self, variant: str) -> MaskedLM:
        settings = ModelConfig(
            num_layers=self.depth,
            hidden_size=HIDDEN,
            num_heads=HEADS,
            feed_forward_size=INNER,
            attention=attention(self.kind, self.rounds),
            **VARIANTS[variant],
        )
        return MaskedLM(settings, seed=0)


@dataclass(frozen=True)
class Curve:
    """Models measured one after the other, each with some variants.

    ``turns`` are those of the clock, 0 for none; ``fresh`` are the variants whose peak a fresh process measures too.
    """

    against: str
    points: list[Point]
    variants: list[str]
    turns: int
    fresh: Sequence[str] = ()


def curves(small: bool) -> list[Curve]:
    if small:
        depths = [Point(kind, depth, 256) for kind in ("favor", "softmax") for depth in (1, 2)]
        lengths, rounds = [Point("lsh", 1, n) for n in (256, 512)], [Point("lsh", 1, 256, r) for r in (1, 2)]
        return [
            Curve("depth", [Point("lsh", depth, 256) for depth in (1, 2)], list(VARIANTS), 1, fresh=["exact"]),
            Curve("depth", depths, FEW, 0),
            Curve("length", lengths, FEW, 1),
            Curve("rounds", rounds, FEW, 1),
        ]
    return [
        Curve("depth", [Point("lsh", 4, 1024)], list(VARIANTS), 5, fresh=list(VARIANTS)),
        Curve("depth", [Point("lsh", 8, 1024)], list(VARIANTS), 5),
        Curve("depth", [Point("lsh", 16, 1024)], list(VARIANTS), 2),
        Curve("depth", [Point("lsh", 32, 1024)], list(VARIANTS), 1, fresh=list(VARIANTS)),
        Curve("depth", [Point(kind, 4, 1024) for kind in ("favor", "softmax")], list(VARIANTS), 5),
        Curve("depth", [Point(kind, 32, 1024) for kind in ("favor", "softmax")], FEW, 0),
        Curve("length", [Point("lsh", 4, length) for length in (2048, 4096, 8192)], FEW, 1),
        Curve("length", [Point("favor", 4, length) for length in (2048, 4096, 8192)], FEW, 1),
        Curve("length", [Point("softmax", 4, length) for length in (2048, 4096)], FEW, 1),
        Curve("rounds", [Point("lsh", 4, 2048, rounds) for rounds in (1, 2, 8)], FEW, 1),
    ]


def batch_of(length: int) -> MaskedBatch:
    """Return a window of random residues, of which 15 % are asked for."""
    generator = torch.Generator().manual_seed(0)
    tokens_1L = torch.randint(4, 24, (1, length), generator=generator)
    is_asked_1L = torch.rand(1, length, generator=generator) < 0.15
    return MaskedBatch(
        tokens_BL=tokens_1L,
        targets_BL=tokens_1L.where(is_asked_1L, torch.tensor(NOT_CHOSEN)),
        positions_BL=torch.arange(length)[None],
        key_mask_BL=torch.ones(1, length, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        window_keys=(1,),
        num_residues=length,
    )


def step(model: MaskedLM, length: int, *, loss_chunk: int = 0) -> Run:
    """Return a function that adds the gradients of a window to those that are there."""
    objective, batch = MaskedLMObjective(model, loss_chunk=loss_chunk), batch_of(length)

    def run() -> None:
        loss, _ = objective(batch)
        (loss / batch.num_targets).backward()

    return run


def ready_step(point: Point, variant: str) -> Run:
    """Return a step of a model that has its gradients and random rows already."""
    model = point.model(variant)
    step(model, min(WARM_UP_LENGTH, point.length))()
    return step(model, point.length)


def fresh_peak(point: Point, variant: str) -> int:
    """Return by how much a step raises the peak memory of a fresh process."""
    sizes = [point.kind, *(str(n) for n in (point.depth, point.length, point.rounds))]
    command = [sys.executable, __file__, "--peak", *sizes, variant]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(curve: Curve) -> list[Row]:
    rows: list[Row] = []
    for point in curve.points:
        runs = {variant: ready_step(point, variant) for variant in curve.variants}
        # the turn that warms up counts bytes
        peaks = {variant: live_bytes(run) for variant, run in runs.items()}
        times = turns(runs, curve.turns)
        for variant in curve.variants:
            row: Row = {"against": curve.against, **vars(point), "trunk": variant, "peak_live_bytes": peaks[variant]}
            row |= {"process_peak_bytes": None, "median_seconds": None, "times_ordinary": None}
            if curve.turns:
                row["median_seconds"] = float(f"{statistics.median(times[variant]):.4g}")
                row["times_ordinary"] = round(ratio(times[variant], times["ordinary"]), 3)
            rows.append(row)
        runs.clear()
        for row in rows[-len(curve.variants) :]:
            if row["trunk"] in curve.fresh:
                row["process_peak_bytes"] = fresh_peak(point, str(row["trunk"]))
            print(*row.values(), sep="\t", flush=True)
    return rows


def growth(rows: Sequence[Row], shallow: int, deep: int) -> list[Row]:
    """Return by how much the peak of each trunk grows with its depth."""
    found: list[Row] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for variant in VARIANTS:
            own = {
                row["depth"]: row
                for row in rows
                if (row["against"], row["kind"], row["trunk"]) == ("depth", kind, variant)
            }
            if shallow in own and deep in own:
                line: Row = {"kind": kind, "trunk": variant}
                for column in ("peak_live_bytes", "process_peak_bytes"):
                    ends = [own[depth][column] for depth in (shallow, deep)]
                    known = None not in ends
                    line[column] = f"{100 * (int(str(ends[1])) / int(str(ends[0])) - 1):+.1f} %" if known else None
                found.append(line)
    return found


def long_step(kind: str, trunk: str, length: int) -> Row:
    """Take one training step of the large model, in this process, and return what it took."""
    settings = ModelConfig(
        num_layers=12 if length == LONG_LENGTH else 2,
        attention=attention(kind, 4),
        feed_forward_chunk=LONG_CHUNK,
        **LONG_TRUNKS[trunk],
    )
    model = MaskedLM(settings, seed=0)
    optimiser = build_optimiser(model.named_parameters(), OptimiserConfig())
    # gradients and moments are there before the step that counts
    step(model, WARM_UP_LENGTH)()
    optimiser.step()
    optimiser.zero_grad(set_to_none=False)
    objective, batch, clock = MaskedLMObjective(model, loss_chunk=LONG_CHUNK), batch_of(length), [time.perf_counter()]

    def run() -> None:
        loss, _ = objective(batch)
        clock.append(time.perf_counter())
        (loss / batch.num_targets).backward()
        clock.append(time.perf_counter())
        optimiser.step()
        clock.append(time.perf_counter())

    clock[0] = time.perf_counter()
    extra, peak = process_peak(run)
    row: Row = {"kind": kind, "trunk": trunk, "layers": settings.num_layers, "length": length}
    parts = zip(("forward", "backward", "update"), clock, clock[1:], strict=False)
    row |= {f"{name}_seconds": round(end - start, 2) for name, start, end in parts}
    row |= {"step_seconds": round(clock[-1] - clock[0], 2), "peak_extra_bytes": extra, "peak_process_bytes": peak}
    return row


def long_rows(length: int, asked: Sequence[tuple[str, str]]) -> list[Row]:
    rows = []
    for kind, trunk in asked:
        command = [sys.executable, __file__, "--long", kind, trunk, str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw memory against depth, length and rounds, and time against depth."""
    picture, axes = figure(4, 17)
    # the shortest model of one curve is a point of another
    lsh = [row for row in rows if row["kind"] == "lsh"]
    chosen = {
        "depth": [row for row in lsh if row["length"] == 1024],
        "length": [row for row in lsh if row["depth"] == 4 and row["rounds"] == 4],
        "rounds": [row for row in lsh if row["depth"] == 4 and row["length"] == 2048],
    }
    titles = {"depth": "1,024 positions", "length": "4 layers", "rounds": "4 layers, 2,048 positions"}
    panels = [(x, "peak_live_bytes", 2.0**-20, "MiB of activations") for x in chosen]
    panels.append(("depth", "median_seconds", 1.0, "seconds, forward + backward"))
    for axis, (x, column, unit, label) in zip(axes[0], panels, strict=True):
        for number, variant in enumerate(VARIANTS):
            colour, style = COLOURS[number % len(TRUNKS)], "o--" if "chunked" in variant else "o-"
            series = [row for row in chosen[x] if row["trunk"] == variant and row[column] is not None]
            series.sort(key=lambda row: int(str(row[x])))
            heights = [float(str(row[column])) * unit for row in series]
            axis.plot([row[x] for row in series], heights, style, ms=3.5, color=colour, label=variant)
        ticks = sorted({int(str(row[x])) for row in chosen[x]})
        tidy(axis, xscale="log", yscale="log", xlabel=x, ylabel=label, title=titles[x])
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
    picture.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    picture.suptitle(f"LSH attention, d = {HIDDEN}, {num_threads()} threads; dashed: feed-forward in chunks")
    picture.savefig(path, dpi=144)


def measure_curves(small: bool) -> None:
    rows = [row for curve in curves(small) for row in measure(curve)]
    depths = (1, 2) if small else (4, 32)
    grown = growth(rows, *depths)
    print(f"\n{markdown(rows)}\n\nfrom {depths[0]} to {depths[1]} layers\n\n{markdown(grown)}")
    if not small:
        write_rows("reformer", rows)
        write_rows("reformer_growth", grown)
        write_machine("reformer")
        draw(rows, RESULTS / "reformer.png")


def measure_long(small: bool) -> None:
    rows = long_rows(1024 if small else LONG_LENGTH, [("lsh", "exact"), ("favor", "reversible")])
    print(f"\n{markdown(rows)}")
    if not small:
        write_rows("reformer_long", rows)
        write_machine("reformer_long")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models; writes no results")
    parser.add_argument("--only", choices=["curves", "long"], help="measure this part only")
    parser.add_argument("--peak", nargs=5, metavar=("KIND", "DEPTH", "LENGTH", "ROUNDS", "TRUNK"), help="print a peak")
    parser.add_argument("--long", nargs=3, metavar=("KIND", "TRUNK", "LENGTH"), help="print one long step")
    options = parser.parse_args()
    if options.peak:
        kind, *sizes, variant = options.peak
        print(process_peak(ready_step(Point(kind, *map(int, sizes)), variant))[0])
    elif options.long:
        print(json.dumps(long_step(options.long[0], options.long[1], int(options.long[2]))))
    else:
        if options.only != "long":
            measure_curves(options.small)
        if options.only != "curves":
            measure_long(options.small)


if __name__ == "__main__":
    main()
