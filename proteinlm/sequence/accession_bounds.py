"""The accession within the bytes of an identifier, for compiled loops."""

from __future__ import annotations

from typing import Any

from numba import njit

from proteinlm.sequence.addresses import byte_at

_BAR = ord("|")


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def accession_bounds(text: Any, start: Any, end: Any) -> Any:
    """Return start and end of the accession, as ``accession`` of proteinlm.sequence.fasta finds it.

    The identifier is bytes ``start`` to ``end`` behind the address ``text``.
    """
    if end - start < 5 or byte_at(text, start + 2) != _BAR:
        return start, end
    first, second = byte_at(text, start), byte_at(text, start + 1)
    if not ((first == ord("s") and second == ord("p")) or (first == ord("t") and second == ord("r"))):
        return start, end
    bar = -1
    for position in range(start + 3, end):
        if byte_at(text, position) == _BAR:
            if bar >= 0:
                return start, end
            bar = position
    return (start + 3, bar) if bar > start + 3 else (start, end)
