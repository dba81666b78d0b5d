"""Where the time of a long reading goes, by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from threading import Lock


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
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._timings.add(self._stage, time.perf_counter() - self._start)


def measured(timings: Timings | None, stage: str) -> AbstractContextManager[None]:
    """Return what measures ``stage``, or does nothing where nobody asks for times."""
    return nullcontext() if timings is None else timings.measure(stage)
