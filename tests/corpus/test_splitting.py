"""Splits depend on the protein and the seed alone, and do not leak."""

from __future__ import annotations

import lzma
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus.splitting import LeakCheck, Splitter, SplittingConfig, read_clusters
from proteinlm.errors import ManifestError

SPLITTER = Splitter(SplittingConfig(validation_share=0.1, ood_share=0.2, seed=3))
digests = st.binary(min_size=16, max_size=16)


@given(st.lists(digests, min_size=1), st.text(min_size=1))
def test_a_held_out_cluster_is_held_out_whole(members, representative):
    splits = {SPLITTER.split_of(digest, representative) for digest in members}
    assert splits == {"validation_ood"} or "validation_ood" not in splits


@given(digests)
def test_without_a_cluster_nothing_is_held_out_as_ood(digest):
    assert SPLITTER.split_of(digest, None) != "validation_ood"


@pytest.mark.parametrize(("split", "share"), [("validation_ood", 0.2), ("validation_iid", 0.8 * 0.1)])
def test_shares_are_as_asked(split, share):
    num = 20_000
    found = sum(SPLITTER.split_of(n.to_bytes(16, "big"), str(n)) == split for n in range(num))
    # binomial: five standard deviations
    assert abs(found - num * share) < 5 * math.sqrt(num * share * (1 - share))


def test_another_seed_draws_another_split():
    splits = [
        [splitter.split_of(n.to_bytes(16, "big"), None) for n in range(64)]
        for splitter in (Splitter(SplittingConfig(validation_share=0.5, seed=seed)) for seed in (0, 1))
    ]
    assert splits[0] != splits[1]


def test_leaks_are_counted_in_proteins_of_validation():
    check = LeakCheck()
    check.watch(b"a", "A", "train")
    check.watch(b"b", "B", "train")
    check.watch(b"a", "C", "validation_ood")
    check.watch(b"a", "B", "validation_ood")
    check.watch(b"c", "B", "validation_ood")
    leak = check.report("validation_ood")
    assert (leak.equal_sequences, leak.same_cluster) == (2, 2)
    assert check.report("validation_iid").equal_sequences == 0


def test_leaks_of_clusters_are_unknown_without_clusters():
    check = LeakCheck()
    check.watch(b"a", None, "train")
    check.watch(b"a", None, "validation_iid")
    leak = check.report("validation_iid")
    assert (leak.equal_sequences, leak.same_cluster) == (1, None)


@pytest.mark.parametrize("header", ["", "representative\tmember\n"], ids=["mmseqs", "with header line"])
def test_clusters_are_read_with_and_without_a_header_line(tmp_path, header):
    path = tmp_path / "clusters.tsv.xz"
    path.write_bytes(lzma.compress(f"{header}A\tA\nA\tB\nC\tC\n".encode()))
    clusters = read_clusters(path)
    assert clusters.representatives == {"A": "A", "B": "A", "C": "C"}
    assert clusters.num_clusters == 2


def test_a_table_of_many_pieces_is_read_whole(tmp_path):
    path = tmp_path / "clusters.tsv"
    members = {f"M{number:06d}": f"R{number // 7:06d}" for number in range(30_000)}
    path.write_bytes("\r\n".join(f"{representative}\t{member}" for member, representative in members.items()).encode())
    clusters = read_clusters(path)
    assert clusters.representatives == members
    assert clusters.digest.num_bytes == path.stat().st_size


def test_a_table_is_never_held_as_text(tmp_path):
    path = tmp_path / "clusters.tsv"
    path.write_bytes(b"A0A000001\tA0A000002\n" * 200_000)
    tracemalloc.start()
    try:
        read_clusters(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # some pieces of 64 KiB cut into lines, where the text has 4 MB
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\tA\nA B\n", r"clusters\.tsv:2: expected representative<TAB>member, found 'A B'"),
        ("A\tA\n\tB\n", r"clusters\.tsv:2: expected representative<TAB>member"),
        ("A\tB\nC\tB\n", r"clusters\.tsv:2: 'B' is in the clusters of two representatives"),
    ],
)
def test_faulty_clusters_are_refused_by_line(tmp_path, text, message):
    path = tmp_path / "clusters.tsv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_clusters(path)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_shares_that_are_none_are_refused(share):
    with pytest.raises(ValueError, match="expected a share"):
        SplittingConfig(validation_share=share)
