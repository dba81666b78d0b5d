"""UniRef's XML gives the rows that the table made from it has."""

from __future__ import annotations

import lzma
import tracemalloc
from pathlib import Path

import pytest

from proteinlm.corpus.uniref_xml import read_uniref_xml
from proteinlm.errors import ManifestError
from tests.corpus.test_cluster_table import ClusterTableConfig, _looked_up, _number, _table

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<UniRef90 xmlns="http://uniprot.org/uniref" version="1">\n'


def _member(kind, name, *properties):
    lines = "".join(f'<property type="{kind}" value="{value}"/>\n' for kind, value in properties)
    return f'<member>\n<dbReference type="{kind}" id="{name}">\n{lines}</dbReference>\n</member>\n'


ENTRY = (
    '<entry id="UniRef90_A1" updated="2020-01-01">\n<property type="member count" value="2"/>\n'
    + _member(
        "UniProtKB ID",
        "A1_HUMAN",
        ("UniProtKB accession", "A1"),
        ("UniProtKB accession", "OLD1"),
        ("UniRef50 ID", "UniRef50_B2"),
        ("UniRef100 ID", "UniRef100_A1"),
    )
    + _member("UniParc ID", "UPI1", ("UniRef50 ID", "UniRef50_B2"), ("UniRef100 ID", "UniRef100_UPI1"))
    + "</entry>\n"
)


def _rows(text, columns=None, piece=50):
    data = text.encode()
    pieces = (data[start : start + piece] for start in range(piece, len(data), piece))
    for rows in read_uniref_xml(Path("uniref.xml"), data[:piece], pieces, columns=columns):
        yield from zip(rows.text.decode().splitlines(), rows.lines, strict=True)


@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (None, ["UniRef50_B2\tUniRef90_A1", "UniRef50_B2\tUniRef90_A1"]),
        (("UniRef90", "member"), ["UniRef90_A1\tA1", "UniRef90_A1\tUPI1"]),
        (("UniRef90", "UniRef100"), ["UniRef90_A1\tUniRef100_A1", "UniRef90_A1\tUniRef100_UPI1"]),
    ],
)
def test_every_member_is_a_row_of_any_two_levels(columns, expected, piece):
    found = list(_rows(f"{HEAD}{ENTRY}</UniRef90>\n", columns, piece))
    assert [row for row, _ in found] == expected
    assert [line for _, line in found] == [6, 14]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (HEAD + ENTRY, None, r"uniref\.xml:20: is damaged or cut off XML"),
        (HEAD + ENTRY.replace("</entry>", "</entri>"), None, r"uniref\.xml:19: is damaged or cut off XML"),
        (HEAD.replace("UTF-8", "unknown"), None, r"uniref\.xml: is XML in an encoding .*; expected UTF-8"),
        (HEAD.replace("UTF-8", "shift_jis"), None, r"uniref\.xml: is XML in an encoding .*; expected UTF-8"),
        ("<uniprot>\n</uniprot>\n", None, r"uniref\.xml: is XML of 'uniprot'; expected UniRef's"),
        (HEAD + ENTRY.replace("UniRef90_A1", "X"), None, r"uniref\.xml:3: has an entry 'X'; expected UniRef50_"),
        (HEAD + ENTRY + "</UniRef90>", ("UniRef90", "length"), "has no column 'length'; UniRef's XML gives uniref50"),
        (
            HEAD + ENTRY.replace('type="UniRef50 ID"', 'type="x"') + "</UniRef90>",
            None,
            r"uniref\.xml:6: a member has no uniref50; choose other columns",
        ),
    ],
)
def test_what_is_no_whole_uniref_is_refused(text, columns, message):
    with pytest.raises(ManifestError, match=message):
        list(_rows(text, columns))


def test_one_piece_is_in_memory_at_a_time(tmp_path):
    path = tmp_path / "uniref90.xml"
    path.write_text(HEAD + ENTRY * 8_000 + "</UniRef90>\n")
    assert path.stat().st_size > 4_000_000
    _table(path)
    tracemalloc.start()
    try:
        _table(path, memory_bytes=1 << 18)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_a_member_in_two_clusters_is_named_by_line(tmp_path):
    path = tmp_path / "uniref90.xml"
    path.write_text(HEAD + ENTRY + ENTRY.replace("UniRef90_A1", "UniRef90_C3") + "</UniRef90>\n")
    config = ClusterTableConfig(seed=0, columns=("uniref90", "member"))
    with pytest.raises(ManifestError, match=r"uniref90\.xml:23: 'A1' is in the clusters of two representatives"):
        _table(path, config)


@pytest.mark.parametrize("columns", [(), ("UniRef50", "UniRef90"), ("UniRef50", "member"), ("UniRef90", "UniRef100")])
def test_xml_of_a_release_and_the_table_made_from_it_agree(shared_data, tmp_path, columns):
    xml = tmp_path / "uniref50.xml.xz"
    xml.symlink_to(shared_data / "sequences" / "uniref50_2014_11_sample.xml.xz")
    source = shared_data / "sequences" / "uniref50_members_2014_11.tsv.xz"
    rows = [line.split("\t") for line in lzma.decompress(source.read_bytes()).decode().splitlines()]
    # the XML is the beginning of what the table was made from
    entries = {
        line.split('"')[1] for line in lzma.decompress(xml.read_bytes()).decode().splitlines() if "<entry " in line
    }
    tsv = tmp_path / "table" / "uniref50.tsv"
    tsv.parent.mkdir()
    rows = [rows[0], *(row for row in rows[1:] if row[0] in entries)]
    tsv.write_text("".join("\t".join(row) + "\n" for row in rows))
    config = ClusterTableConfig(seed=3, columns=columns, num_largest=4)
    from_xml, from_table = _table(xml, config), _table(tsv, config)
    place = {name: number for number, name in enumerate(rows[0])}
    group, member = (place[name.lower()] for name in columns or ("UniRef50", "UniRef90"))
    expected = {row[member]: _number(row[group], 3) for row in rows[1:]}
    assert _looked_up(from_xml, list(expected)) == _looked_up(from_table, list(expected)) == expected
    assert (from_xml.num_members, from_xml.num_clusters) == (from_table.num_members, from_table.num_clusters)
    assert from_xml.largest.tolist() == from_table.largest.tolist()
    assert len(rows) > 100
