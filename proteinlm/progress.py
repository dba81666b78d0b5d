"""How long work tells its caller where it is.

Library functions take a ``Progress`` and know nothing of terminals; the command line passes one
that draws a bar, and every other caller gets ``SILENT``.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Somebody who wants to hear how far a piece of work is."""

    def start(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Announce ``task`` of ``total`` units (None: not known beforehand), ``done`` of them before now."""

    def advance(self, amount: int, **figures: str) -> None:
        """Say that ``amount`` more units are done, with named figures such as the loss."""

    def finish(self) -> None:
        """End the task that was announced last."""

    def note(self, text: str) -> None:
        """Say something about the work between two tasks, in one line."""


class SilentProgress:
    """A ``Progress`` that says nothing."""

    def start(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Ignore the announcement."""

    def advance(self, amount: int, **figures: str) -> None:
        """Ignore the step."""

    def finish(self) -> None:
        """Ignore the end."""

    def note(self, text: str) -> None:
        """Ignore the line."""


SILENT = SilentProgress()
