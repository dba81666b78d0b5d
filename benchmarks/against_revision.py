"""Every attention mechanism as it is, against another revision of the project: 8 heads of 64, float32, m = 256.

Both revisions are loaded into one process and run turn by turn on the same inputs, so that a slow moment of the
machine hits both; the ratio of a row is the median of the ratios of turns that stood side by side, above 1 where this
checkout is faster. A window is one segment, or 21 packed proteins of unequal length. Run it alone on the machine.

    python benchmarks/against_revision.py d208d4a                  about ten minutes on two cores
    python benchmarks/against_revision.py d208d4a --lengths 1024   shorter, and writes nothing
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from measuring import Row, markdown, ratio, take_turns, write_machine, write_rows
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
HEADS, HEAD_DIM, NUM_FEATURES, NUM_PROTEINS = 8, 64, 256, 21
LENGTHS = [1024, 8192]
PASSES = ["forward", "forward+backward"]
# seconds that the turns of one row are to take, and how many there are at least and at most
BUDGET, FEWEST, MOST = 4.0, 7, 60
# forms beside each kind's default settings
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "favor hyperbolic": ("favor", {"feature_map": "hyperbolic"}),
    "favor relu": ("favor", {"feature_map": "generalised"}),
    "favor trigonometric": ("favor", {"feature_map": "trigonometric"}),
    "favor exact below 300": ("favor", {"exact_below": 300}),
    "linear numerator": ("linear", {"normalisation": "numerator"}),
    "linear decay": ("linear", {"decay": "distance"}),
    "softmax shared": ("softmax", {"shared_query_key": True}),
    "lsh separate": ("lsh", {"shared_query_key": False}),
}


def load(folder: Path) -> ModuleType:
    """Return proteinlm.attention of a checkout, whatever was loaded before."""
    for name in [name for name in sys.modules if name.split(".")[0] == "proteinlm"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("proteinlm.attention")
    finally:
        sys.path.pop(0)


def forms(attention: ModuleType) -> dict[str, tuple[str, dict[str, object]]]:
    return {kind: (kind, {}) for kind in attention.MECHANISMS} | FORMS


def call(attention: ModuleType, form: str, which: str, inputs: list[Tensor], ends: Tensor) -> Callable[[], object]:
    """Return a function that runs one pass of one revision."""
    kind, settings = forms(attention)[form]
    if kind == "favor":
        settings = {"num_random_features": NUM_FEATURES} | settings
    config = attention.MECHANISMS[kind][0](**settings)
    # in evaluation: trigonometric features refuse to train
    attend = attention.build_attention(config, head_dim=HEAD_DIM, layer=0, seed=0).eval()
    *qkv, weights = inputs
    if which == "forward":
        return torch.no_grad()(lambda: attend(*qkv, cu_seqlens=ends))
    leaves = [x.detach().requires_grad_() for x in qkv]
    return lambda: torch.autograd.grad(attend(*leaves, cu_seqlens=ends), leaves, weights)


def bounds(length: int, num_segments: int) -> Tensor:
    """Return where segments of unequal length start, and the end."""
    shares = torch.rand(num_segments, generator=torch.Generator().manual_seed(0)) + 0.2
    inner = (shares.cumsum(0)[:-1] / shares.sum() * length).round().int()
    return torch.cat((torch.tensor([0]), inner, torch.tensor([length]))).int()


def measure(now: ModuleType, before: ModuleType, lengths: list[int]) -> list[Row]:
    rows: list[Row] = []
    for length in lengths:
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(1, length, HEADS, HEAD_DIM, generator=generator) for _ in range(4)]
        for num_segments in (1, NUM_PROTEINS):
            ends = bounds(length, num_segments)
            for form in forms(now):
                for which in PASSES:
                    runs = {
                        name: call(attention, form, which, inputs, ends)
                        for name, attention in (("now", now), ("before", before))
                    }
                    times = take_turns(runs, budget=BUDGET, fewest=FEWEST, most=MOST)
                    rows.append(
                        {
                            "length": length,
                            "segments": num_segments,
                            "mechanism": form,
                            "pass": which,
                            "before_over_now": round(ratio(times["before"], times["now"]), 3),
                            "fastest_before_over_now": round(min(times["before"]) / min(times["now"]), 3),
                            "median_seconds_now": float(f"{statistics.median(times['now']):.4g}"),
                            "turns": len(times["now"]),
                        }
                    )
                    print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", nargs="?", default="HEAD~1", help="a commit to compare with")
    parser.add_argument("--lengths", type=int, nargs="+", help="measure these and write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "before"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(other), options.revision], check=True
        )
        try:
            before, now = load(other), load(ROOT)
            rows = measure(now, before, options.lengths or LENGTHS)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], check=True)
    print(markdown(rows))
    if not options.lengths:
        write_rows("against_revision", rows)
        write_machine("against_revision", revision=options.revision)


if __name__ == "__main__":
    main()
