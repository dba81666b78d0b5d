"""What benchmarks measure with: seconds turn by turn, and bytes of memory."""

from __future__ import annotations

import csv
import json
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from machine import describe
from proc_files import proc_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RESULTS = Path(__file__).resolve().parent / "results"
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]

Run = Callable[[], object]
Row = dict[str, object]


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def take_turns(runs: Mapping[str, Run], *, budget: float, fewest: int, most: int) -> dict[str, list[float]]:
    """Return the seconds of each run, all of them turn by turn behind one turn that only warms up.

    Args:
        budget: seconds that the turns may take, within ``fewest`` and ``most`` of them.
    """
    warm = sum(seconds(run) for run in runs.values())
    return turns(runs, min(most, max(fewest, int(budget / warm))))


def turns(runs: Mapping[str, Run], number: int) -> dict[str, list[float]]:
    """Return the seconds of each run, all of them turn by turn."""
    taken = [{name: seconds(run) for name, run in runs.items()} for _ in range(number)]
    return {name: [turn[name] for turn in taken] for name in runs}


def ratio(times: Sequence[float], beside: Sequence[float]) -> float:
    """Return the median of the ratios of turns that stood side by side."""
    return statistics.median(one / other for one, other in zip(times, beside, strict=True))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside and still alive, and the most there were at a time.

    The same numbers on a busy machine. What a kernel needs for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for storage in [x.untyped_storage() for x in tree_leaves(result) if isinstance(x, Tensor)]:
            if storage._cdata not in self._known | before:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, name: int, num_bytes: int) -> None:
        self._known.discard(name)
        self.now -= num_bytes


def live_bytes(run: Run) -> int:
    """Return the most bytes of tensors that a run has alive at a time, beyond what was there before."""
    with LiveBytes() as live:
        run()
    return live.peak


def process_peak(run: Run) -> tuple[int, int]:
    """Return by how much a run raises the peak memory of this process, and that peak; for a fresh process."""
    # getrusage would also count the peak of the process that started this one
    Path("/proc/self/clear_refs").write_text("5")
    before = proc_bytes("self/status", "VmRSS")
    kept = run()
    peak = proc_bytes("self/status", "VmHWM")
    del kept
    return peak - before, peak


def markdown(rows: Sequence[Row], columns: Sequence[str] = ()) -> str:
    """Return rows as a Markdown table."""
    columns = columns or list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def write_rows(name: str, rows: Sequence[Row]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_machine(name: str, **more: str) -> None:
    (RESULTS / f"{name}.machine.json").write_text(json.dumps(describe() | more, indent=2) + "\n")


def tidy(axis, **settings: object) -> None:  # type: ignore[no-untyped-def]
    """Give an axis of a picture the look that all have."""
    axis.set(**settings)
    axis.grid(color="#e3e6ea")
    axis.spines[["top", "right"]].set_visible(False)


def figure(columns: int, width: float):  # type: ignore[no-untyped-def]
    """Return a new picture of some axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, 4.4), layout="constrained", squeeze=False)


def num_threads() -> int:
    return torch.get_num_threads()
