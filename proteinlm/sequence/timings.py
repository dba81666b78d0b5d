"""Where the time of a long reading goes, by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from threading import Lock

# a stage that is part of no other
COMPILE = "compile"


class Timings:
    """Seconds spent in each stage, summed over all threads, so their sum can exceed the time on a clock.

    A stage is measured around a whole block or piece: for one record the measuring would cost more
    than the work.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds so far, by stage."""
        with self._lock:
            return dict(self._seconds)

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Add the time spent inside to ``stage``, also where it ends by an exception."""
        return _Measured(self, stage)

    def clock(self) -> float:
        """Return the seconds on a clock that stands still while something is compiled, as far as that is told."""
        return time.perf_counter() - self._seconds.get(COMPILE, 0.0)

    def add(self, stage: str, seconds: float) -> None:
        """Add ``seconds`` to ``stage``."""
        with self._lock:
            self._seconds[stage] += seconds


class _Measured:
    # a generator for a context takes three times as long, ten times a block
    __slots__ = ("_stage", "_start", "_timings")

    def __init__(self, timings: Timings, stage: str) -> None:
        self._timings, self._stage = timings, stage

    def __enter__(self) -> None:
        self._start = self._timings.clock()

    def __exit__(self, *error: object) -> None:
        # less than nothing where another thread compiled when the stage began
        self._timings.add(self._stage, max(0.0, self._timings.clock() - self._start))


def measured(timings: Timings | None, stage: str) -> AbstractContextManager[None]:
    """Return what measures ``stage``, or does nothing where nobody asks for times."""
    return nullcontext() if timings is None else timings.measure(stage)
