"""What is appended to a spool is found again by number, after an interruption too."""

from __future__ import annotations

import numpy as np
import pytest

from proteinlm.corpus.digest_spool import (
    CLUSTER,
    DUPLICATE_COLUMNS,
    LEAK_COLUMNS,
    NO_CLUSTER,
    DigestSpool,
    columns_needed,
    split_of_place,
)
from proteinlm.errors import OutputError
from tests.corpus.digest_blocks import digest_block

BLOCK = digest_block([(10, 11), (20, 21), (30, 31)], [(1, 2), (3, 4), (5, 6)])
KEPT = np.array([True, False, True])


def _append(spool, source=0, start=0):
    spool.append(BLOCK, KEPT, np.array([2, 255], dtype=np.uint8), np.array([start, start + 1]), source)


@pytest.fixture
def spool(tmp_path):
    with DigestSpool(tmp_path / "spool") as opened:
        yield opened


def test_columns_hold_the_kept_records_in_order(spool):
    _append(spool)
    _append(spool, source=65_535, start=(1 << 56) - 2)
    assert spool.num_records == 4
    assert [spool.read(name, 0, 4).tolist() for name in DUPLICATE_COLUMNS[:4]] == [
        [10, 30, 10, 30],
        [11, 31, 11, 31],
        [1, 5, 1, 5],
        [2, 6, 2, 6],
    ]
    assert split_of_place(spool.read("place", 1, 3)).tolist() == [255, 2]
    numbers = np.array([3, 0])
    assert [part.tolist() for part in spool.places(numbers)] == [[255, 2], [(1 << 56) - 1, 0]]
    assert [part.tolist() for part in spool.lines(numbers)] == [[65_535, 0], [3, 1]]


def test_records_far_apart_are_found_by_number(spool):
    for source in range(50):
        _append(spool, source=source)
    assert spool.lines(np.array([0, 99]))[0].tolist() == [0, 49]
    assert spool.lines(np.array([], dtype=np.int64))[0].tolist() == []


def test_a_resumed_spool_goes_on_where_it_was(spool):
    for source in range(3):
        _append(spool, source=source)
    spool.close()
    with DigestSpool.resumed(spool.folder, 4) as resumed:
        _append(resumed, source=7)
        assert resumed.num_records == 6
        assert resumed.lines(np.arange(6))[0].tolist() == [0, 0, 1, 1, 7, 7]


def test_what_is_flushed_outlives_the_process(spool):
    _append(spool)
    spool.flush()
    assert spool.path("line").stat().st_size == 16


def test_a_spool_that_has_lost_records_is_refused(spool):
    _append(spool)
    spool.close()
    with pytest.raises(OutputError, match=r"sequence_low\.u64: holds 2 records where 3 were written; remove .*spool"):
        DigestSpool.resumed(spool.folder, 3)
    spool.path("line").unlink()
    with pytest.raises(OutputError, match=r"line\.u64: holds 0 records where 2 were written"):
        DigestSpool.resumed(spool.folder, 2)


def test_a_new_spool_forgets_what_lay_there(spool):
    _append(spool)
    spool.close()
    with DigestSpool(spool.folder) as new:
        assert (new.num_records, new.path("line").stat().st_size) == (0, 0)


@pytest.mark.parametrize(
    ("duplicates", "has_clusters", "may_part", "expected"),
    [
        ("count", False, False, set(DUPLICATE_COLUMNS)),
        ("drop", True, True, {*DUPLICATE_COLUMNS, *LEAK_COLUMNS}),
        ("ignore", True, True, set(LEAK_COLUMNS)),
        ("ignore", False, True, {*LEAK_COLUMNS} - {CLUSTER}),
        ("ignore", False, False, set()),
    ],
)
def test_only_what_will_be_looked_at_is_written(tmp_path, duplicates, has_clusters, may_part, expected):
    columns = columns_needed(duplicates=duplicates, has_clusters=has_clusters, may_part_equals=may_part)
    clusters = np.array([4, NO_CLUSTER], dtype=np.uint64) if has_clusters else None
    with DigestSpool(tmp_path, columns=columns) as spool:
        spool.append(BLOCK, KEPT, np.array([0, 0], dtype=np.uint8), np.array([0, 1]), 0, clusters)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == {f"{name}.u64": 16 for name in expected}
    with DigestSpool.resumed(tmp_path, 2, columns=columns) as resumed:
        assert resumed.num_records == 2
