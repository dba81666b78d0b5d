"""Progress and notes on a terminal: all on stderr, so that stdout holds results only."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm

# seconds between lines where no terminal watches, as in a log of a batch system
LOG_INTERVAL = 30.0


def note(text: str) -> None:
    """Print a line for the person who runs the command, if somebody still listens."""
    with suppress(OSError):
        click.echo(text, err=True)


class TerminalProgress:
    """A ``Progress`` that draws a bar on a terminal and writes a line now and then in a log."""

    def __init__(self) -> None:
        self._display: _Bar | _Log | None = None

    def start(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Begin to show a task, ``done`` units of which were done before."""
        # it is None where whoever began this process has closed it
        display = _Bar if sys.stderr is not None and sys.stderr.isatty() else _Log
        self._display = display(task, total, unit, done)

    def advance(self, amount: int, **figures: str) -> None:
        """Show that the task has moved on, and the figures behind it."""
        if self._display is not None:
            self._display.advance(amount, figures)

    def finish(self) -> None:
        """End the display of the task."""
        if self._display is not None:
            self._display.finish()
        self._display = None

    def note(self, text: str) -> None:
        """Print the line, above the bar where there is one."""
        if self._display is None:
            note(text)
        else:
            self._display.note(text)


class _Bar:
    """A bar on a terminal."""

    def __init__(self, task: str, total: int | None, unit: str, done: int) -> None:
        from tqdm import tqdm

        shown = unit if len(unit) == 1 else f" {unit}"
        self._bar: tqdm[Any] = tqdm(
            total=total,
            initial=done,
            desc=task,
            unit=shown,
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def advance(self, amount: int, figures: dict[str, str]) -> None:
        # a terminal that was closed does not end the work
        with suppress(OSError):
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(amount)

    def note(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def finish(self) -> None:
        with suppress(OSError):
            self._bar.close()


class _Log:
    """Lines at intervals, where nobody watches a bar; short tasks write none."""

    def __init__(self, task: str, total: int | None, unit: str, done: int) -> None:
        self._task, self._total, self._unit = task, total, unit
        self._before = self._done = done
        self._start = self._last = time.perf_counter()

    def advance(self, amount: int, figures: dict[str, str]) -> None:
        self._done += amount
        now = time.perf_counter()
        if now - self._last < LOG_INTERVAL:
            return
        self._last = now
        of_total = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self._task}: {self._done:,}{of_total} {self._unit}", f"{seconds(self._start)} so far"]
        if self._unit == "B":
            parts.append(f"{(self._done - self._before) / max(now - self._start, 1e-9) / 1e6:,.1f} MB/s")
        if self._total and self._done > self._before:
            left = (now - self._start) * (self._total - self._done) / (self._done - self._before)
            parts.append(f"about {_said(left)} left")
        note(", ".join([*parts, *(f"{name} {value}" for name, value in figures.items())]))

    def note(self, text: str) -> None:
        note(text)

    def finish(self) -> None:
        pass


def seconds(start: float) -> str:
    """Return the time since ``start`` (of ``time.perf_counter``) as people say it."""
    return _said(time.perf_counter() - start)


def _said(elapsed: float) -> str:
    return f"{elapsed:.1f} s" if elapsed < 60 else f"{int(elapsed // 60)} min {int(elapsed % 60):02d} s"
