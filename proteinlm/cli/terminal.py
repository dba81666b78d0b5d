"""Progress and notes on a terminal: all on stderr, so that stdout holds results only."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm

# seconds between lines where no terminal watches, as in a log of a batch system
LOG_INTERVAL = 30.0


def note(text: str) -> None:
    """Print a line for the person who runs the command."""
    click.echo(text, err=True)


class TerminalProgress:
    """A ``Progress`` that draws a bar on a terminal and writes a line now and then in a log."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, task: str, total: int | None, unit: str) -> None:
        """Draw an empty bar."""
        from tqdm import tqdm

        is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=task,
            unit=unit if len(unit) == 1 else f" {unit}",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=is_terminal,
            mininterval=0.2 if is_terminal else LOG_INTERVAL,
            maxinterval=10.0 if is_terminal else LOG_INTERVAL,
            leave=True,
        )

    def advance(self, amount: int, **figures: str) -> None:
        """Move the bar and show the figures behind it."""
        if self._bar is not None:
            if figures:
                self._bar.set_postfix(figures, refresh=False)
            self._bar.update(amount)

    def finish(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def seconds(start: float) -> str:
    """Return the time since ``start`` (of ``time.perf_counter``) as people say it."""
    elapsed = time.perf_counter() - start
    return f"{elapsed:.1f} s" if elapsed < 60 else f"{int(elapsed // 60)} min {int(elapsed % 60):02d} s"
