"""Duplicates and leaks found within little memory are those that sets and dictionaries find."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus import duplicates, equal_digests
from proteinlm.corpus.digest_spool import LEAK_COLUMNS, NO_CLUSTER, columns_needed
from proteinlm.corpus.duplicates import find_duplicates, find_leaks
from proteinlm.corpus.record_set import RecordSet
from tests.corpus.digest_blocks import filled_spool
from tests.corpus.leak_check import LeakCheck

SPLITS = {"train": 3, "validation_iid": 0, "validation_ood": 255}
# 64 rows are always sorted at once: with less memory than that every larger table is parted
TINY, AMPLE = 1, 1 << 24
NUM = 3_000


def _random(num, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, (num, 2), dtype=np.uint64)


def _drawn(num, num_different, seed=1):
    """Return digests of which many are equal."""
    return _random(num_different)[np.random.default_rng(seed).integers(0, num_different, num)]


def _one_half_equal(half):
    digests = _drawn(NUM, NUM)
    digests[:, half] = 12_345
    return digests


def _nearly_one():
    digests = np.full((NUM, 2), 7, dtype=np.uint64)
    digests[::3, 1] ^= np.arange(NUM // 3, dtype=np.uint64) % np.uint64(9)
    return digests


def _two_in_turn():
    digests = np.zeros((NUM, 2), dtype=np.uint64)
    digests[1::2, 1] = 1
    return digests


CASES = {
    "none": _random(0),
    "one": _random(1),
    "all different": _random(NUM),
    "all equal": np.zeros((NUM, 2), dtype=np.uint64),
    "half repeated": _drawn(NUM, NUM // 2),
    "few different": _drawn(NUM, 5),
    "low halves equal": _one_half_equal(0),
    "high halves equal": _one_half_equal(1),
    "last bits differ": _nearly_one(),
    "two in turn": _two_in_turn(),
    "largest": np.full((NUM, 2), (1 << 64) - 1, dtype=np.uint64),
}


def _plain_repeats(digests, skip=()):
    seen, found = set(), []
    for number, digest in enumerate(map(tuple, np.asarray(digests).tolist())):
        if number in skip:
            continue
        if digest in seen:
            found.append(number)
        seen.add(digest)
    return found


@pytest.mark.parametrize("memory_bytes", [TINY, 20_000, 100_000, AMPLE])
@pytest.mark.parametrize("case", CASES)
def test_repeats_are_those_that_a_set_finds(tmp_path, case, memory_bytes):
    digests = CASES[case]
    found = find_duplicates(filled_spool(tmp_path, digests, digests[::-1]), memory_bytes=memory_bytes)
    assert found.sequences.numbers().tolist() == _plain_repeats(digests)
    assert found.names.numbers().tolist() == _plain_repeats(digests[::-1])
    assert len(found.sequences) == len(_plain_repeats(digests))


@pytest.mark.parametrize("memory_bytes", [TINY, AMPLE])
def test_names_of_dropped_records_are_no_ones(tmp_path, memory_bytes):
    digests, names = _drawn(NUM, NUM // 2), _drawn(NUM, NUM // 2, seed=2)
    found = find_duplicates(filled_spool(tmp_path, digests, names), memory_bytes=memory_bytes, drop=True)
    dropped = _plain_repeats(digests)
    assert found.sequences.numbers().tolist() == dropped
    assert found.names.numbers().tolist() == _plain_repeats(names, set(dropped))


@pytest.mark.parametrize("case", ["all different", "all equal", "half repeated"])
def test_nothing_but_the_columns_is_left(tmp_path, case):
    spool = filled_spool(tmp_path, CASES[case])
    find_duplicates(spool, memory_bytes=TINY)
    assert sorted(tmp_path.iterdir()) == sorted(spool.path(column) for column in spool.columns)


def test_a_folder_of_parts_that_an_interrupted_run_left_does_not_matter(tmp_path):
    spool = filled_spool(tmp_path, CASES["half repeated"])
    (tmp_path / "parts" / "00").mkdir(parents=True)
    (tmp_path / "parts" / "00" / "low").write_bytes(b"left")
    found = find_duplicates(spool, memory_bytes=TINY)
    assert found.sequences.numbers().tolist() == _plain_repeats(CASES["half repeated"])


def test_tables_are_parted_again_and_again_where_memory_is_short(tmp_path, monkeypatch):
    depths = []
    plain = equal_digests._parts
    monkeypatch.setattr(equal_digests, "_MAX_PARTITION_BITS", 2)
    monkeypatch.setattr(equal_digests, "_parts", lambda *words: depths.append(words[3]) or plain(*words))
    digests = _drawn(NUM, NUM // 2)
    found = find_duplicates(filled_spool(tmp_path, digests), memory_bytes=TINY)
    assert found.sequences.numbers().tolist() == _plain_repeats(digests)
    assert max(depths) >= 4


def test_without_a_pair_that_begins_alike_only_low_halves_are_read(tmp_path):
    spool = filled_spool(tmp_path, CASES["all different"])
    spool.path("sequence_high").unlink()
    assert len(find_duplicates(spool, memory_bytes=AMPLE).sequences) == 0


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(list(SPLITS)), st.none() | st.integers(0, 9))),
    st.sampled_from([TINY, AMPLE]),
)
def test_leaks_are_those_of_the_plain_check(proteins, memory_bytes):
    _compare_leaks(proteins, memory_bytes)


@pytest.mark.parametrize("num_clusters", [1, 3, 2_000])
@pytest.mark.parametrize("memory_bytes", [TINY, 50_000, AMPLE])
def test_leaks_of_many_proteins_are_those_of_the_plain_check(num_clusters, memory_bytes):
    rng = np.random.default_rng(3)
    numbers, clusters = rng.integers(0, NUM, NUM).tolist(), rng.integers(0, num_clusters, NUM).tolist()
    splits = rng.choice(list(SPLITS), NUM, p=[0.2, 0.3, 0.5]).tolist()
    _compare_leaks(list(zip(numbers, splits, clusters, strict=True)), memory_bytes)


@pytest.mark.parametrize("train", [0, NUM // 2, NUM - 1])
def test_one_protein_of_train_is_enough_wherever_it_stands(train):
    proteins = [(1, "validation_iid", 5)] * NUM
    proteins[train] = (1, "train", 5)
    _compare_leaks(proteins, TINY)


def _compare_leaks(proteins, memory_bytes):
    check = LeakCheck()
    for number, split, cluster in proteins:
        check.watch(bytes([number % 256, number // 256]), None if cluster is None else str(cluster), split)
    with tempfile.TemporaryDirectory() as name:
        spool = filled_spool(
            Path(name),
            [(number % 3, number) for number, _, _ in proteins],
            splits=[SPLITS[split] for _, split, _ in proteins],
            clusters=[NO_CLUSTER if cluster is None else cluster for _, _, cluster in proteins],
            columns=LEAK_COLUMNS,
        )
        found = find_leaks(spool, SPLITS, train="train", memory_bytes=memory_bytes)
    assert found == {split: check.report(split) for split in ("validation_iid", "validation_ood")}


def test_what_is_dropped_leaks_nothing(tmp_path):
    digests, splits, clusters = [(1, 1)] * 4, [3, 0, 0, 255], [8, 8, 9, 9]
    spool = filled_spool(tmp_path, digests, splits=splits, clusters=clusters, columns=LEAK_COLUMNS)
    dropped = RecordSet(4)
    dropped.add(np.array([2], dtype=np.uint64))
    found = find_leaks(spool, SPLITS, train="train", memory_bytes=AMPLE, dropped=dropped)
    assert (found["validation_iid"].equal_sequences, found["validation_iid"].same_cluster) == (1, 1)
    dropped.add(np.array([0], dtype=np.uint64))
    found = find_leaks(spool, SPLITS, train="train", memory_bytes=AMPLE, dropped=dropped)
    assert (found["validation_ood"].equal_sequences, found["validation_ood"].same_cluster) == (0, None)


def test_leaks_that_cannot_be_need_no_column(tmp_path):
    columns = columns_needed(duplicates="ignore", has_clusters=False, may_part_equals=False)
    spool = filled_spool(tmp_path, CASES["all equal"], columns=columns)
    found = find_leaks(spool, SPLITS, train="train", memory_bytes=TINY)
    assert (found["validation_iid"].equal_sequences, found["validation_iid"].same_cluster) == (0, None)


def test_numbers_of_clusters_stay_apart_when_spread():
    numbers = np.arange(1 << 16, dtype=np.uint64)
    assert len(np.unique(numbers * duplicates._SPREAD)) == len(numbers)
