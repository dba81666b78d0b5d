"""What is compiled is told once, and its time is part of no other stage."""

from __future__ import annotations

import time

from numba import njit

from proteinlm.progress import SilentProgress
from proteinlm.sequence.compiling import compiling_told
from proteinlm.sequence.timings import Timings


class _Heard(SilentProgress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def _loop(module):
    """Return a compiled function of a module that nobody has called yet."""

    def double(number):
        return 2 * number

    double.__module__ = module
    return njit(double)


def test_compiling_is_told_once_and_is_a_stage_of_its_own():
    heard, timings = _Heard(), Timings()
    first, second = _loop("proteinlm.sequence.one"), _loop("proteinlm.corpus.two")
    start = time.perf_counter()
    with compiling_told(heard, timings):
        with timings.measure("scan"):
            assert (first(2), second(3)) == (4, 6)
            waited = time.perf_counter() - start
            time.sleep(0.05)
        # what is compiled already, and what is not ours
        assert (first(4), _loop("elsewhere")(5)) == (8, 10)
    assert heard.notes == ["compiling for this processor, which the first run does once for all …"]
    spent = timings.seconds
    assert 0.5 * waited < spent["compile"] < waited
    assert 0.05 <= spent["scan"] < 0.05 + 0.5 * waited


def test_nothing_is_told_where_nothing_is_compiled():
    heard, timings = _Heard(), Timings()
    loop = _loop("proteinlm.sequence.three")
    loop(1)
    with compiling_told(heard, timings):
        loop(2)
    assert (heard.notes, timings.seconds) == ([], {})
