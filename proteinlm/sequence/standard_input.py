"""Standard input without a buffer."""

from __future__ import annotations

import functools
import io
import select
import sys
from typing import IO, Any

from proteinlm.errors import FastaError


class StandardInput:
    """Standard input as raw bytes, whose opening may be looked at before it is read.

    A thread that waits for more in a buffered file holds the file's lock, and a process that ends
    meanwhile is aborted over it.
    """

    def __init__(self, buffer: IO[bytes]) -> None:
        raw: Any = getattr(buffer, "raw", buffer)
        self._raw: io.RawIOBase = raw
        self._opening = b""

    def peek(self, size: int) -> bytes:
        """Return up to ``size`` bytes, or fewer where no more are there yet, that are still to be read."""
        self._opening = self._opening or self._next(size)
        return self._opening

    def read(self, size: int) -> bytes:
        """Return what was looked at, and then up to ``size`` bytes; none at the end."""
        opening, self._opening = self._opening, b""
        return opening or self._next(size)

    def _next(self, size: int) -> bytes:
        # None is no end: whoever began this process has told its input not to wait
        while (piece := self._raw.read(size)) is None:
            select.select([self._raw], [], [])
        return piece


def standard_input() -> StandardInput:
    """Return the one ``StandardInput`` of this process.

    Raises:
        FastaError: if whoever began this process has closed it.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise FastaError("standard input: is closed; pipe sequences into it, or name a file")
    return _of_buffer(sys.stdin.buffer)


@functools.lru_cache(maxsize=1)
def _of_buffer(buffer: IO[bytes]) -> StandardInput:
    return StandardInput(buffer)
