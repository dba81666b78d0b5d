"""Every file of the collection of faulty FASTA files gets the treatment that docs/reading.md states."""

from __future__ import annotations

import csv

import pytest

from proteinlm.errors import FastaError
from proteinlm.sequence.fasta import FastaConfig, ReadingTally, read_fasta

REFUSED = {
    "bad_characters.fasta": ":2: '1' after 'DGTLV' is no residue",
    "bad_crc.fasta.gz": ": the gzip data are damaged",
    "bad_isize.fasta.gz": ": the gzip data are damaged",
    "clustal_named.fasta": ": is no FASTA but looks like a CLUSTAL alignment",
    "double_gz.fasta.gz": ": is no FASTA but looks like gzip data inside compressed data",
    "empty.fasta": ": holds no record",
    "genbank_named.fasta": ": is no FASTA but looks like a GenBank file",
    "gz_of_empty.fasta.gz": ": holds no record",
    "gz_trailing_garbage.fasta.gz": ": bytes after the end of the gzip data are no further member",
    "html_error_named.fasta": ": is no FASTA but looks like an HTML page",
    "joined_without_newline.fasta": ":12: '>' inside a sequence line",
    "json_named.fasta": ": is no FASTA but looks like JSON",
    "lfs_pointer.fasta": ": is no FASTA but looks like a Git LFS pointer",
    "nbsp_in_sequence.fasta": ":2: character U+00A0 after 'SNWAR' is no residue",
    "nul_in_header.fasta": ":1: a NUL byte",
    "nul_in_sequence.fasta": ":2: a NUL byte",
    "nul_tail.fasta": ":47: a NUL byte",
    "only_newlines.fasta": ": holds no record",
    "reads_fastq_named.fasta": ": is no FASTA but looks like FASTQ",
    "text_before_first.fasta": ":1: text before the first header",
    "truncated.fasta.gz": ": the gzip data end before their end mark",
    "utf16be_bom.fasta": ": is no FASTA but looks like text in UTF-16",
    "utf16le_bom.fasta": ": is no FASTA but looks like text in UTF-16",
}

# files of which something is taken away or noted; all others are read without a word
TREATED = {
    "bare_gt.fasta": {"headers without identifier": 3},
    "bom_in_middle.fasta": {"byte order marks": 1},
    "utf8_bom.fasta": {"byte order marks": 1},
    "digits_spaces.fasta": {"line numbers": 12, "lines with blanks": 12},
    "gaps.fasta": {"gaps": 24},
    "semicolon_comments.fasta": {"comment lines": 5},
    "stop_at_end.fasta": {"stops at the end": 4},
    "stop_inside.fasta": {"sequences with a stop inside": 4},
    "trailing_blanks.fasta": {"lines with blanks": 30},
}

# files that hold the records of good.fasta in another dress
SAME_AS_GOOD = (
    *("crlf", "cr_only", "mixed_eol", "no_final_newline", "utf8_bom", "bom_in_middle", "trailing_blanks"),
    *("blank_lines", "ragged_lines"),
)


@pytest.fixture(scope="module")
def nasty(shared_data):
    return shared_data / "sequences" / "nasty"


@pytest.fixture(scope="module")
def expected(nasty):
    with (nasty / "EXPECTED.tsv").open(encoding="utf-8") as table:
        return {row["file"]: row for row in csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)}


def test_every_faulty_file_is_read_as_expected_or_refused_by_name_and_line(nasty, expected):
    for name, row in expected.items():
        tally = ReadingTally()
        try:
            records = list(read_fasta([nasty / name], tally=tally))
        except FastaError as error:
            message = str(error)
            assert name in REFUSED, message
            assert message.startswith(f"{nasty / name}{REFUSED[name]}"), message
            continue
        assert name not in REFUSED, f"{name} was read"
        found = (str(len(records)), str(sum(len(record.residues) for record in records)))
        assert found == (row["records"] or found[0], row["residues"] or found[1]), name
        assert tally.treatments == TREATED.get(name, {}), name


def test_every_stated_treatment_is_of_a_file_that_exists(expected):
    assert expected.keys() >= REFUSED.keys() | TREATED.keys()


@pytest.mark.parametrize("name", SAME_AS_GOOD)
def test_other_line_layouts_give_the_records_of_the_plain_file(nasty, name):
    good, other = ([record[:3] for record in read_fasta([nasty / f"{stem}.fasta"])] for stem in ("good", name))
    assert other == good


def test_every_other_sequence_file_of_the_collection_is_read_to_its_end(shared_data):
    # aligned files hold gaps, and the one with text before its first header is refused as it should be
    refused = []
    folder = shared_data / "sequences"
    suffixes = (".fasta", ".faa", ".fa", ".afa", ".pro", ".xz")
    paths = [path for path in (*folder.iterdir(), *(folder / "nasty_real").iterdir()) if path.suffix in suffixes]
    for path in paths:
        if path.stem.endswith((".gb", ".dat", ".xml", ".tsv")):
            continue
        try:
            assert sum(1 for _ in read_fasta([path], config=FastaConfig(gaps="keep")))
        except FastaError as error:
            refused.append(f"{path.name} {error}")
    assert [line.split()[0] for line in refused] == ["aster_pearson_comments.pro"], refused
