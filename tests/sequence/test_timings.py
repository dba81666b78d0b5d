"""Times are summed by stage, whatever thread they come from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from proteinlm.sequence.timings import Timings


def test_stages_are_summed_over_threads():
    timings = Timings()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: timings.add("parse", 0.5), range(100)))
    assert timings.seconds == {"parse": 50.0}


def test_a_stage_that_fails_is_measured_too():
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.measure("parse"):
        _ = 1 / 0
    assert timings.seconds["parse"] > 0
