"""Tables of clusters are looked up as a dict would be, whatever their size and form."""

from __future__ import annotations

import codecs
import lzma
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.corpus.cluster_table import ClusterTableConfig, cluster_table
from proteinlm.errors import FastaError, ManifestError
from proteinlm.randomness import stream

BUDGET = 1 << 24
# so little that every piece of a table goes to the disk at once
TINY = 1


def _key(name):
    return xxhash.xxh3_128_intdigest(name.encode()) & ((1 << 64) - 1)


def _number(representative, seed=0):
    return xxhash.xxh3_64_intdigest(representative.encode(), seed)


def _looked_up(table, names):
    """Return {name: number of the cluster, or None}."""
    clusters, is_known = table.lookup(np.array([_key(name) for name in names], dtype=np.uint64))
    return {
        name: cluster if known else None
        for name, cluster, known in zip(names, clusters.tolist(), is_known.tolist(), strict=True)
    }


def _table(path, config=None, memory_bytes=BUDGET):
    return cluster_table(
        path, path.parent / f"arrays_{memory_bytes}", config or ClusterTableConfig(seed=0), memory_bytes=memory_bytes
    )


@pytest.fixture
def random_clusters(tmp_path):
    """{member: representative} of 20,000 proteins, and the table, with some rows twice."""
    draw = stream(0, "clusters")
    representative_of = {f"A0A{number:06d}": f"R{int(draw.exponential(900))}" for number in range(20_000)}
    rows = [f"{representative}\t{member}" for member, representative in representative_of.items()]
    path = tmp_path / "clusters.tsv"
    path.write_text("\r\n".join(rows + rows[::9]))
    return representative_of, path


@pytest.mark.parametrize("memory_bytes", [BUDGET, 1 << 18, TINY], ids=["in memory", "in parts", "no memory"])
def test_a_table_answers_as_a_dict_does(random_clusters, memory_bytes):
    representative_of, path = random_clusters
    table = _table(path, ClusterTableConfig(seed=7), memory_bytes)
    names = [*representative_of, "R0", "missing", ""]
    expected = {name: _number(representative_of[name], 7) if name in representative_of else None for name in names}
    assert _looked_up(table, names[::-1]) == expected
    assert _looked_up(table, []) == {}
    assert (table.num_members, table.num_clusters) == (20_000, len(set(representative_of.values())))
    assert table.num_bytes == path.stat().st_size


@pytest.mark.parametrize("memory_bytes", [BUDGET, TINY])
@pytest.mark.parametrize("num_largest", [1, 3, 40, 100_000])
def test_the_largest_clusters_are_found_and_ties_go_by_name(random_clusters, memory_bytes, num_largest):
    representative_of, path = random_clusters
    sizes = Counter(representative_of.values())
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:num_largest]
    table = _table(path, ClusterTableConfig(seed=0, num_largest=num_largest), memory_bytes)
    assert table.largest.tolist() == sorted(_number(name) for name in largest)


@given(st.dictionaries(st.integers(0, 60), st.integers(0, 12), min_size=1), st.integers(1, 9))
def test_any_number_of_largest_clusters_is_found_among_ties(tmp_path_factory, cluster_of, num_largest):
    path = tmp_path_factory.mktemp("ties") / "clusters.tsv"
    path.write_text("".join(f"R{cluster}\tM{member}\n" for member, cluster in cluster_of.items()))
    sizes = Counter(cluster_of.values())
    largest = sorted(sizes, key=lambda cluster: (-sizes[cluster], f"R{cluster}"))[:num_largest]
    table = _table(path, ClusterTableConfig(seed=0, num_largest=num_largest))
    assert table.largest.tolist() == sorted(_number(f"R{cluster}") for cluster in largest)


@pytest.mark.parametrize("header", ["", "representative\tmember\n", "cluster\tprotein\n"])
def test_a_header_line_is_told_from_a_row(tmp_path, header):
    path = tmp_path / "clusters.tsv.xz"
    path.write_bytes(lzma.compress(f"{header}A\tA\nA\tB\nC\tC\n".encode()))
    table = _table(path)
    assert _looked_up(table, "ABC") == {"A": _number("A"), "B": _number("A"), "C": _number("C")}
    assert (table.num_members, table.num_clusters) == (3, 2)


@pytest.mark.parametrize("header", [b"", b"representative\tmember\n"])
def test_the_mark_of_utf8_is_no_part_of_the_first_name(tmp_path, header):
    path = tmp_path / "clusters.tsv"
    path.write_bytes(codecs.BOM_UTF8 + header + b"A\tA\r\nA\tB\r\n")
    table = _table(path)
    assert _looked_up(table, "AB") == {"A": _number("A"), "B": _number("A")}
    assert (table.num_members, table.num_clusters) == (2, 1)


def test_a_table_that_is_compressed_to_a_hundredth_is_read(tmp_path):
    path = tmp_path / "clusters.tsv.xz"
    # so that the first piece of the file holds more text than a line may have
    path.write_bytes(lzma.compress(b"".join(b"UniRef50_A\tM%07d\n" % number for number in range(80_000))))
    table = _table(path)
    assert (table.num_members, table.num_clusters) == (80_000, 1)


def test_members_may_be_named_by_accession_or_by_identifier(tmp_path):
    path = tmp_path / "clusters.tsv"
    path.write_text("R\tP1\nR\tsp|P2|NAME\nR\ttr|P3|NAME|X\nR\tUniRef90_P4\n")
    names = ["P1", "P2", "tr|P3|NAME|X", "UniRef90_P4"]
    assert set(_looked_up(_table(path), names).values()) == {_number("R")}


@pytest.mark.parametrize("memory_bytes", [BUDGET, TINY])
def test_numbers_of_clusters_are_told_from_others(random_clusters, memory_bytes):
    representative_of, path = random_clusters
    table = _table(path, memory_bytes=memory_bytes)
    numbers = np.array([_number(name) for name in {*representative_of.values()}], dtype=np.uint64)
    assert table.is_cluster(numbers).all()
    assert not table.is_cluster(numbers + np.uint64(1)).any()
    assert table.is_cluster(np.stack([numbers, ~numbers], axis=1).reshape(-1)).tolist() == [True, False] * len(numbers)


def test_columns_are_chosen_by_name(tmp_path):
    path = tmp_path / "levels.tsv"
    path.write_text("uniref50\tuniref90\tmember\nU50_A\tU90_A\tA\nU50_A\tU90_A\tB\nU50_A\tU90_C\tC\n")
    assert _looked_up(_table(path), ["U90_A", "U90_C", "A"]) == {
        "U90_A": _number("U50_A"),
        "U90_C": _number("U50_A"),
        "A": None,
    }
    config = ClusterTableConfig(seed=0, columns=("UniRef90", "Member"))
    assert _looked_up(_table(path, config), ["A", "B", "C", "U90_A"]) == {
        "A": _number("U90_A"),
        "B": _number("U90_A"),
        "C": _number("U90_C"),
        "U90_A": None,
    }


def test_a_table_that_is_there_is_not_made_again(random_clusters, tmp_path):
    representative_of, path = random_clusters
    config = ClusterTableConfig(seed=0, num_largest=5)
    first = _table(path, config)
    arrays = tmp_path / f"arrays_{BUDGET}"
    times = {file.name: file.stat().st_mtime_ns for file in arrays.iterdir()}
    again = _table(path, config)
    assert {file.name: file.stat().st_mtime_ns for file in arrays.iterdir()} == times
    assert vars(again).keys() == vars(first).keys()
    assert again.largest.tolist() == first.largest.tolist()
    assert (again.sha256, again.num_clusters) == (first.sha256, first.num_clusters)
    name = next(iter(representative_of))
    for other in (ClusterTableConfig(seed=1, num_largest=5), ClusterTableConfig(seed=0)):
        assert _looked_up(_table(path, other), [name]) == {name: _number(representative_of[name], other.seed)}


def test_a_table_of_another_file_is_made_again(tmp_path):
    path = tmp_path / "clusters.tsv"
    path.write_text("A\tB\n")
    _table(path)
    path.write_text("A\tB\nA\tC\n")
    assert _looked_up(_table(path), "BC") == {"B": _number("A"), "C": _number("A")}


def test_making_leaves_nothing_but_the_arrays(random_clusters, tmp_path):
    _, path = random_clusters
    _table(path, memory_bytes=TINY)
    found = {file.name: file.stat().st_size for file in (tmp_path / f"arrays_{TINY}").iterdir()}
    assert found.keys() == {"members.u64", "clusters.u64", "numbers.u64", "clusters.json"}
    assert found["members.u64"] == found["clusters.u64"] == 8 * 20_000


def test_a_table_is_never_held_as_text_nor_as_rows_beyond_the_budget(tmp_path):
    path = tmp_path / "clusters.tsv"
    path.write_text("".join(f"R{number // 3:07d}\tA0A{number:07d}\n" for number in range(200_000)))
    _table(path)
    tracemalloc.start()
    try:
        _table(path, memory_bytes=1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # the rows have 3.2 MB and the text 4 MB; pieces of 64 KiB and what compiled code needs come on top
    assert peak < (1 << 20) + (1 << 20)


def test_an_empty_table_has_no_clusters(tmp_path):
    path = tmp_path / "clusters.tsv"
    path.write_text("")
    table = _table(path, ClusterTableConfig(seed=0, num_largest=3))
    assert (table.num_members, table.num_clusters, table.largest.tolist()) == (0, 0, [])
    assert _looked_up(table, "AB") == {"A": None, "B": None}


@pytest.mark.parametrize("memory_bytes", [BUDGET, TINY])
@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("A\tA\nA B\n", (), r"clusters\.tsv:2: expected representative<TAB>member, found 'A B'"),
        ("A\tA\n\tB\n", (), r"clusters\.tsv:2: expected representative<TAB>member"),
        ("A\tA\nA\t\r\n", (), r"clusters\.tsv:2: expected representative<TAB>member"),
        ("A\tA\n\nA\tB\n", (), r"clusters\.tsv:2: expected representative<TAB>member, found ''"),
        ("A\tA\nA\tB\tC\n", (), r"clusters\.tsv:2: expected representative<TAB>member"),
        ("A\tB\nA\tC\nC\tB\n", (), r"clusters\.tsv:3: 'B' is in the clusters of two representatives"),
        ("A\tsp|B|X\nC\tB\n", (), r"clusters\.tsv:2: 'B' is in the clusters of two representatives"),
        ("uniref50\tuniref90\tx\nA\tB\n", (), r"clusters\.tsv:2: expected 3 columns, found 'A\\tB'"),
        ("uniref50\tuniref90\nA\tB\nC\tB\n", (), r"clusters\.tsv:3: 'B' is in the clusters of two"),
        ("uniref50\tuniref90\nA\tB\n", ("uniref50", "x"), r"clusters\.tsv:1: has no column 'x'; .* uniref50, uniref90"),
    ],
)
def test_faulty_tables_are_refused_by_line(tmp_path, text, columns, message, memory_bytes):
    path = tmp_path / "clusters.tsv"
    path.write_text(text, newline="")
    with pytest.raises(ManifestError, match=message):
        _table(path, ClusterTableConfig(seed=0, columns=columns), memory_bytes)


def test_a_fault_far_down_is_named_by_its_line(random_clusters):
    representative_of, path = random_clusters
    text = path.read_text()
    path.write_text(f"{text}\nnot a row\n", newline="")
    num_rows = len(representative_of) + len(list(representative_of)[::9])
    with pytest.raises(ManifestError, match=rf"clusters\.tsv:{num_rows + 1}: expected .* found 'not a row'"):
        _table(path, memory_bytes=TINY)


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(FastaError, match=r"nowhere\.tsv: no such file"):
        _table(tmp_path / "nowhere.tsv")
    with pytest.raises(FastaError, match=r"cannot be read \(Is a directory\)"):
        _table(tmp_path)
    with pytest.raises(ManifestError, match="is no regular file"):
        _table(Path("/dev/null"))
    path = tmp_path / "endless.tsv"
    path.write_bytes(b"A" * (3 << 20))
    with pytest.raises(ManifestError, match=r"endless\.tsv:1: has over 1,048,576 bytes in one line"):
        _table(path)
