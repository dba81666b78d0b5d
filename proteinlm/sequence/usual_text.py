"""Whether a text is usual, told in one pass and without the interpreter's lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from proteinlm.sequence.addresses import address_of
from proteinlm.sequence.wide_bytes import NEED_CARE, WIDTH, care_mask

# bytes that are looked at before it is asked whether something was found
_STEP = 64 * WIDTH
_NEEDS_CARE = np.isin(np.arange(256), [*NEED_CARE])


def is_usual(text: bytes) -> bool:
    """Say whether ``text`` holds no NUL, no carriage return and not the first byte of a byte order mark."""
    usual: bool = _is_usual(np.frombuffer(text, dtype=np.uint8))
    return usual


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _is_usual(text: Any) -> Any:
    base, here = address_of(text), 0
    while here + _STEP <= len(text):
        found = np.uint64(0)
        for place in range(here, here + _STEP, WIDTH):
            found |= care_mask(base + np.uint64(place))
        if found:
            return False
        here += _STEP
    needs_care = False
    for place in range(here, len(text)):
        needs_care |= _NEEDS_CARE[text[place]]
    return not needs_care
