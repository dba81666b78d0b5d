"""LSH attention beside exact attention and reformer-pytorch: time, memory, and error against what it stands for.

Time: 8 heads of 64, batch 1, float32, 4 rounds, chunks of 64; hashing is included, and rotations are drawn anew for
every call, as in training. Exact attention is torch's, with keys of its own. All run side by side in one
process, turn by turn; peaks are those of fresh processes.
Error: of the output against exact attention with shared queries and keys, float64, with 1 to 16 rounds,
median of draws. reformer-pytorch looks at one chunk before (and round from the first to the last), so that ours is
measured looking at both sides and at one.
Cost: error against milliseconds at 4,096 positions, each method against its own exact attention.
Queries are "clustered" (64 directions, a logit of about 8 within a cluster and near 0 outside) or "diffuse" (no
direction, logits of deviation 0.25), for error and cost alike.
Writes lsh_time.csv, lsh_error.csv, lsh_cost.csv and two pictures. Run it alone on the machine.

    python benchmarks/run.py lsh       measures everything, about four minutes on two cores
    python benchmarks/lsh.py --small   short lengths; writes nothing

reformer-pytorch 1.4.4 takes part where it is installed, which proteinlm never asks for. Give it a folder of its
own, lest it brings another torch:

    pip install --target .reformer --no-deps reformer-pytorch==1.4.4 local-attention einops product-key-memory \
        axial-positional-embedding hyper-connections torch-einops-utils CoLT5-attention
    PYTHONPATH=.reformer python benchmarks/run.py lsh
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import (
    COLOURS,
    RESULTS,
    Row,
    Run,
    figure,
    markdown,
    num_threads,
    process_peak,
    ratio,
    take_turns,
    tidy,
    write_machine,
    write_rows,
)
from torch import Tensor
from torch.nn import functional

from proteinlm.attention import AttentionConfig, FavorConfig, LshConfig, ScatterbrainConfig, build_attention
from proteinlm.ops.softmax_attention import shared_query_key_attention, softmax_attention

HEADS, HEAD_DIM, ROUNDS, CHUNK = 8, 64, 4, 64
LENGTHS = [1024, 2048, 4096, 8192, 16384]
PASSES = ["forward", "forward+backward"]
LSH, SDPA, REFORMER = "lsh", "exact", "reformer-pytorch"
LONGEST = {(SDPA, PASSES[1]): 8192}
PEAK_LENGTHS = [4096, 16384]
MILLISECONDS = [20, 50, 100, 200, 500]  # ticks of the picture
# lengths of the logits q·k / K^(1/2) where both point the same way
SHARPNESS = {"clustered": 10.0, "diffuse": 2.0}
NUM_CLUSTERS = 64
ERROR_LENGTH, COST_LENGTH = 2048, 4096
ERROR_ROUNDS, ERROR_DRAWS, COST_DRAWS = [1, 2, 4, 8, 16], 7, 5

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def kinds_at(which: str, length: int) -> list[str]:
    kinds = [LSH, SDPA, *([REFORMER] if importlib.util.find_spec("reformer_pytorch") else [])]
    return [kind for kind in kinds if length <= LONGEST.get((kind, which), length)]


def reformer(num_rounds: int) -> Attend:
    """Return its attention for (B, L, H, K); it is the same function: k = q / |q|, scores by 1 / sqrt(K), no self."""
    from reformer_pytorch import LSHAttention

    attention = LSHAttention(bucket_size=CHUNK, n_hashes=num_rounds).eval()

    def attend(q_BLHK: Tensor, _: Tensor, v_BLHK: Tensor) -> Tensor:
        # heads are windows to it; buckets: one a chunk
        q, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BLHK, v_BLHK))
        return attention(q, v)[0].view(len(q_BLHK), -1, *v.shape[1:]).transpose(1, 2)

    return attend


def library(config: AttentionConfig) -> Attend:
    """Return a mechanism of the library that draws anew in every call; keys of shared ones are the queries."""
    attention, steps = build_attention(config, head_dim=HEAD_DIM, layer=0, seed=0), itertools.count()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention.set_step(next(steps))
        return attention(q, q if attention.shares_query_key else k, v)

    return attend


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return exact attention by torch, which wants heads first."""
    return functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def mechanism(kind: str) -> Attend:
    if kind == LSH:
        return library(LshConfig(num_hashes=ROUNDS, chunk_length=CHUNK))
    return exact if kind == SDPA else reformer(ROUNDS)


def call(kind: str, which: str, length: int) -> Run:
    """Return a function that runs one pass."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, weights = (torch.randn(1, length, HEADS, HEAD_DIM, generator=generator) for _ in range(4))
    attend = mechanism(kind)
    if which == "forward":
        return torch.no_grad()(lambda: attend(q, k, v))
    # what reads no keys of their own gets no gradient for them
    leaves = [x.requires_grad_() for x in ((q, k, v) if kind == SDPA else (q, v))]
    return lambda: torch.autograd.grad(attend(q, k, v), leaves, weights)


def peak(kind: str, which: str, length: int) -> int:
    command = [sys.executable, __file__, "--peak", kind, which, str(length)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(kind: str, which: str, length: int) -> None:
    call(kind, which, 2 * CHUNK)()
    print(process_peak(call(kind, which, length))[0])


def time_rows(lengths: Sequence[int], peak_lengths: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    for which in PASSES:
        for length in lengths:
            kinds = kinds_at(which, length)
            times = take_turns({kind: call(kind, which, length) for kind in kinds}, budget=6, fewest=3, most=15)
            for kind in kinds:
                row: Row = {"pass": which, "length": length, "attention": kind}
                row["median_seconds"] = float(f"{statistics.median(times[kind]):.4g}")
                for rival, name in ((SDPA, "exact"), (REFORMER, "reformer_pytorch")):
                    is_there = rival in times
                    row[f"times_faster_than_{name}"] = round(ratio(times[rival], times[kind]), 3) if is_there else None
                row["peak_extra_bytes"] = peak(kind, which, length) if length in peak_lengths else None
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
    return rows


def draw_inputs(spread: str, length: int, generator: torch.Generator) -> list[Tensor]:
    """Return q, k and v, float64: unit directions, |q| |k| = sharpness · K^(1/2), and independent values."""
    sizes = (1, length, HEADS, HEAD_DIM)
    q, k, v = (torch.randn(*sizes, generator=generator, dtype=torch.float64) for _ in range(3))
    if spread == "clustered":
        # noise of half the length: two of a cluster have a cosine of about 0.8
        centres = torch.randn(NUM_CLUSTERS, HEAD_DIM, generator=generator, dtype=torch.float64)
        for x in (q, k):
            which = torch.randint(NUM_CLUSTERS, sizes[:3], generator=generator)
            x.mul_(0.5).add_(centres[which])
    size = (SHARPNESS[spread] * math.sqrt(HEAD_DIM)) ** 0.5
    return [*(functional.normalize(x, dim=-1) * size for x in (q, k)), v]


def shared(inputs: Sequence[Tensor], spread: str) -> tuple[Tensor, Tensor]:
    """Return queries and values for shared keys of length 1, with the same logits."""
    q, _, v = inputs
    return functional.normalize(q, dim=-1) * SHARPNESS[spread] * math.sqrt(HEAD_DIM), v


def relative(out: Tensor, wanted: Tensor) -> float:
    return float((out - wanted).norm() / wanted.norm())


def uniform_error(v: Tensor, wanted: Tensor) -> float:
    return relative(v.mean(1, keepdim=True), wanted)


@torch.no_grad()
def error_rows(length: int, draws: int) -> list[Row]:
    rows: list[Row] = []
    sides = {"lsh": {}, "lsh, looking back only": {"num_chunks_after": 0}}
    torch.manual_seed(0)  # reformer-pytorch draws from the global generator
    for spread in SHARPNESS:
        q, v = shared(draw_inputs(spread, length, torch.Generator().manual_seed(0)), spread)
        wanted = shared_query_key_attention(q, v)
        print(f"{spread}: uniform attention {uniform_error(v, wanted):.4f}")
        for rounds in ERROR_ROUNDS:
            ways = {n: library(LshConfig(num_hashes=rounds, chunk_length=CHUNK, **s)) for n, s in sides.items()}
            if importlib.util.find_spec("reformer_pytorch"):
                ways[REFORMER] = reformer(rounds)
            for name, attend in ways.items():
                error = statistics.median(relative(attend(q, q, v), wanted) for _ in range(draws))
                row: Row = {"inputs": spread, "rounds": rounds, "attention": name, "relative_error": round(error, 4)}
                rows.append({**row, "uniform_error": round(uniform_error(v, wanted), 4)})
                print(*row.values(), sep="\t", flush=True)
    return rows


def cost_ways(small: bool) -> dict[str, dict[int, AttentionConfig]]:
    """Return settings of rising cost for each method."""
    features, keys = [64, 128, 256, 512, 1024], [0, 64, 128, 256, 512, 1024]
    ways: dict[str, dict[int, AttentionConfig]] = {
        "separate LSH, sampled keys": {
            s: LshConfig(shared_query_key=False, chunk_length=CHUNK, num_sampled_keys=s) for s in keys
        },
        "FAVOR+, features": {m: FavorConfig(num_random_features=m, redraw_interval=1) for m in features},
        "Scatterbrain, features": {m: ScatterbrainConfig(num_random_features=m, redraw_interval=1) for m in features},
        "shared LSH, rounds": {r: LshConfig(num_hashes=r, chunk_length=CHUNK) for r in ERROR_ROUNDS},
    }
    return {name: dict(list(settings.items())[: 2 if small else None]) for name, settings in ways.items()}


@torch.no_grad()
def cost_rows(length: int, draws: int, *, small: bool = False) -> list[Row]:
    rows: list[Row] = []
    for spread in SHARPNESS:
        inputs = draw_inputs(spread, length, torch.Generator().manual_seed(1))
        q_shared, v = shared(inputs, spread)
        wanted = {False: softmax_attention(*inputs), True: shared_query_key_attention(q_shared, v)}
        singles = {False: [x.float() for x in inputs], True: [x.float() for x in (q_shared, q_shared, v)]}
        ways = {(name, n): c for name, settings in cost_ways(small).items() for n, c in settings.items()}
        attends = {key: library(config) for key, config in ways.items()}
        is_shared = {key: getattr(config, "shared_query_key", False) for key, config in ways.items()}
        runs: dict[str, Run] = {SDPA: lambda qkv=singles[False]: exact(*qkv)}
        for key, attend in attends.items():
            runs[str(key)] = lambda attend=attend, qkv=singles[is_shared[key]]: attend(*qkv)
        times = take_turns(runs, budget=12, fewest=3, most=9)
        for key, attend in attends.items():
            own, qkv = wanted[is_shared[key]], singles[is_shared[key]]
            error = statistics.median(relative(attend(*qkv).double(), own) for _ in range(draws))
            row: Row = {"inputs": spread, "method": key[0], "setting": key[1], "relative_error": round(error, 4)}
            row["milliseconds"] = float(f"{1e3 * statistics.median(times[str(key)]):.4g}")
            row["times_faster_than_exact"] = round(ratio(times[SDPA], times[str(key)]), 3)
            rows.append({**row, "uniform_error": round(uniform_error(v, own), 4)})
            print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def draw_times(rows: Sequence[Row], path: Path) -> None:
    picture, axes = figure(2, 10)
    for axis, which in zip(axes[0], PASSES, strict=True):
        for kind, colour in zip((LSH, SDPA, REFORMER), COLOURS, strict=False):
            series = [row for row in rows if (row["pass"], row["attention"]) == (which, kind)]
            heights = [row["median_seconds"] for row in series]
            axis.plot([row["length"] for row in series], heights, "o-", ms=3.5, color=colour, label=kind)
        tidy(axis, xscale="log", yscale="log", xlabel="length", ylabel="seconds", title=which)
        axis.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
        axis.minorticks_off()
    axes[0][0].legend(frameon=False)
    picture.suptitle(f"{HEADS} heads of {HEAD_DIM}, {ROUNDS} rounds, chunks of {CHUNK}, {num_threads()} threads")
    picture.savefig(path, dpi=144)


def draw_errors(errors: Sequence[Row], costs: Sequence[Row], path: Path) -> None:
    """Draw error against rounds, and error against time for each kind of input."""
    picture, axes = figure(3, 14)
    names = list(dict.fromkeys(str(row["attention"]) for row in errors))
    for name, colour in zip(names, COLOURS, strict=False):
        for spread, style in zip(SHARPNESS, ("o-", "o--"), strict=True):
            series = [row for row in errors if (row["attention"], row["inputs"]) == (name, spread)]
            heights = [row["relative_error"] for row in series]
            label = name if style == "o-" else None
            axes[0][0].plot(ERROR_ROUNDS, heights, style, ms=3.5, color=colour, label=label)
    title = f"shared queries and keys, {ERROR_LENGTH:,} positions\n(dashed: diffuse)"
    tidy(axes[0][0], xscale="log", yscale="log", xlabel="rounds", ylabel="relative error", title=title)
    axes[0][0].set_xticks(ERROR_ROUNDS, [str(rounds) for rounds in ERROR_ROUNDS])
    axes[0][0].minorticks_off()
    for axis, spread in zip(axes[0][1:], SHARPNESS, strict=True):
        for name, colour in zip(cost_ways(False), COLOURS, strict=False):
            series = [row for row in costs if (row["method"], row["inputs"]) == (name, spread)]
            points = [(row["milliseconds"], row["relative_error"]) for row in series]
            axis.plot(*zip(*points, strict=True), "o-", ms=3.5, color=colour, label=name)
            for point, row in zip(points, series, strict=True):
                axis.annotate(str(row["setting"]), point, fontsize=6, xytext=(2, 2), textcoords="offset points")
            axis.axhline(float(str(series[0]["uniform_error"])), color=colour, linewidth=0.8, linestyle=":")
        title = f"{spread}, {COST_LENGTH:,} positions\n(dotted: uniform attention)"
        tidy(axis, xscale="log", yscale="log", xlabel="milliseconds", ylabel="relative error", title=title)
        axis.set_xticks(MILLISECONDS, [str(milliseconds) for milliseconds in MILLISECONDS])
        axis.minorticks_off()
    for axis in axes[0][:2]:
        axis.legend(frameon=False, fontsize=8)
    picture.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="short lengths; writes no results")
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "PASS", "LENGTH"), help="print one peak and stop")
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak[0], options.peak[1], int(options.peak[2]))
        return
    if options.small:
        for rows in (time_rows([512], [512]), error_rows(512, 2), cost_rows(512, 1, small=True)):
            print(markdown(rows))
        return
    times, errors = time_rows(LENGTHS, PEAK_LENGTHS), error_rows(ERROR_LENGTH, ERROR_DRAWS)
    costs = cost_rows(COST_LENGTH, COST_DRAWS)
    for name, rows in (("lsh_time", times), ("lsh_error", errors), ("lsh_cost", costs)):
        write_rows(name, rows)
        print(f"\n{markdown(rows)}")
    is_there = importlib.util.find_spec("reformer_pytorch")
    write_machine("lsh", **({REFORMER: importlib.metadata.version(REFORMER)} if is_there else {}))
    draw_times(times, RESULTS / "lsh_time.png")
    draw_errors(errors, costs, RESULTS / "lsh_error.png")


if __name__ == "__main__":
    main()
