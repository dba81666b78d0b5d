"""Bytes of memory, as files in /proc tell them."""

from __future__ import annotations

from pathlib import Path


def proc_bytes(file: str, field: str) -> int:
    """Return a field, told in kB, of a file such as ``meminfo`` or ``self/status``."""
    lines = (Path("/proc") / file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
