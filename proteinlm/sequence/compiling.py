"""Compiling told: the first run on a machine waits for it, and keeps what was compiled for all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from proteinlm.progress import Progress
from proteinlm.sequence.timings import COMPILE, Timings


@contextmanager
def compiling_told(progress: Progress, timings: Timings) -> Iterator[None]:
    """Say when the first of our loops is compiled in the block, and add the time of all to the stage ``compile``."""
    from numba.core.event import TimingListener, install_listener

    class Telling(TimingListener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            if self._depth == 0 and COMPILE not in timings.seconds and _is_ours(event):
                progress.note("compiling for this processor, which the first run does once for all …")
            super().on_start(event)

        def on_end(self, event: Any) -> None:
            before = self.duration if self.done else 0.0
            super().on_end(event)
            if self._depth == 0 and _is_ours(event):
                timings.add(COMPILE, self.duration - before)

    with install_listener("numba:compile", Telling()):
        yield


def _is_ours(event: Any) -> bool:
    # numba compiles small functions of its own too
    module: str = event.data["dispatcher"].py_func.__module__
    return module.startswith("proteinlm.")
