"""Tables of sequences are read by the names of their columns."""

from __future__ import annotations

import gzip
import sys

import pytest

from proteinlm.errors import FastaError, UnavailableError
from proteinlm.sequence.entries import read_entries, read_records
from proteinlm.sequence.fasta import FastaConfig, ReadingTally, read_fasta
from proteinlm.sequence.source_formats import format_of

ROWS = [("first", "MKVLA", 1), ("second one", "mk*", 2), ("", "ACD", 3)]
READ = [("first", "", b"MKVLA"), ("second", "one", b"mk")]


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'proteinlm[tables]'")


@pytest.fixture
def write(tmp_path, arrow):
    """Write the rows as a table of some kind; return its path."""

    def run(kind, names=("id", "Sequence", "score")):
        from pyarrow import csv, parquet

        table = arrow.table([list(column) for column in zip(*ROWS, strict=True)], names=list(names))
        path = tmp_path / f"table.{kind}"
        if kind == "parquet":
            parquet.write_table(table, path, row_group_size=2)
        else:
            csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if kind == "tsv" else ","))
        return path

    return run


@pytest.mark.parametrize(("kind", "lines"), [("parquet", [1, 2, 3]), ("csv", [2, 3, 4]), ("tsv", [2, 3, 4])])
def test_rows_are_records(write, kind, lines):
    tally = ReadingTally()
    path = write(kind)
    records = list(read_records([path], tally=tally))
    fields = [(record.identifier, record.description, record.residues) for record in records]
    assert fields == [*READ, (f"unnamed:{lines[2]}", "", b"ACD")]
    assert [record.line for record in records] == lines
    assert tally.treatments == {"stops at the end": 1, "headers without identifier": 1}
    assert tally.sources[0].digest.num_bytes == path.stat().st_size


def test_compressed_text_is_read(write, tmp_path):
    path = tmp_path / "table.gz"
    path.write_bytes(gzip.compress(write("tsv").read_bytes()))
    assert len(list(read_records([path]))) == 3


def test_rows_can_be_skipped(write):
    for kind in ("csv", "parquet"):
        (record,) = read_entries(write(kind), "table", skip=2)
        assert record.residues == b"ACD"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_columns_are_named_by_the_settings(write, kind):
    path = write(kind, ("who", "what", "score"))
    config = FastaConfig(identifier_column="who", sequence_column="what")
    assert len(list(read_records([path], config=config))) == 3


def test_a_missing_column_is_named_with_those_that_are_there(write):
    with pytest.raises(
        FastaError, match=r"has no column identifier or .*; it has who, sequence, score; .*'--identifier-"
    ):
        list(read_records([write("csv", ("who", "sequence", "score"))]))
    with pytest.raises(FastaError, match=r"has no column nothing; it has id, what, score; .*'--sequence-column'"):
        list(read_records([write("parquet", ("id", "what", "score"))], config=FastaConfig(sequence_column="nothing")))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_damaged_table_is_refused(write, kind):
    path = write(kind)
    path.write_bytes(path.read_bytes()[:-4] + b',x"\n')
    with pytest.raises(FastaError, match="the table is damaged or cut off"):
        list(read_records([path]))


def test_a_compressed_parquet_file_is_refused(write, tmp_path):
    path = tmp_path / "table.gz"
    path.write_bytes(gzip.compress(write("parquet").read_bytes()))
    with pytest.raises(FastaError, match="Parquet"):
        list(read_records([path]))


def test_what_is_no_residue_is_refused_by_line(write):
    path = write("csv")
    path.write_text(path.read_text().replace("MKVLA", "MK9LA"))
    with pytest.raises(FastaError, match=":2: '9' after 'MK' is no residue"):
        list(read_records([path]))


def test_without_pyarrow_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("id,sequence\nfirst,MK\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnavailableError, match=r"pip install 'proteinlm\[tables\]'"):
        list(read_records([path]))


def test_fasta_with_the_words_of_a_table_stays_fasta(tmp_path):
    path = tmp_path / "file"
    for text in (">id,sequence\nMK\n", "# id,sequence\n>first\nMK\n", ";id\tsequence\n>first\nMK\n"):
        path.write_text(text)
        assert format_of(path) == "fasta"
        assert len(list(read_records([path]))) == 1


def test_read_fasta_says_what_reads_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,sequence\nfirst,MK\n")
    with pytest.raises(FastaError, match="looks like a table; 'proteinlm ingest' reads one"):
        list(read_fasta([path]))
