"""FASTA as people have it: read, or refused by file and line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.errors import FastaError
from proteinlm.sequence import fasta
from proteinlm.sequence.fasta import FastaConfig, ReadingTally, accession, read_fasta

FILES = Path(__file__).parent.parent / "data" / "fasta"
A = b"MKTAYIAKQRQISFVKSHFSRQ"
B = b"MSILVTRPSPAGEELVSRLRTL"

# file -> residues, and what the tally counts
READ = {
    "plain": ([A, B], {}),
    "crlf": ([A, B], {}),
    "cr_only": ([A, B], {}),
    "cr_cr_lf": ([A, B], {}),
    "mixed_line_ends": ([A, B], {}),
    "byte_order_marks": ([A, B], {"byte order marks": 2}),
    "blanks_and_numbers": ([A, B], {"line numbers": 2, "lines with blanks": 2}),
    "comments": ([A, B], {"comment lines": 4}),
    "greater_in_header": ([A, B], {}),
    "no_residues": ([b"", B, b""], {}),
    "no_identifier": ([A, B], {"headers without identifier": 2}),
    "lower_case": ([A.lower(), B[:5] + B[5:10].lower() + B[10:]], {}),
    "rare_letters": ([b"MKBJOUXZkbjouxz"], {}),
    "stops": ([A, A[:8] + b"*" + A[8:], b""], {"stops at the end": 2, "sequences with a stop inside": 1}),
    "gaps": ([A], {"gaps": 5}),
    "x_only": ([b"XXxX", B], {}),
    "duplicate_identifiers": ([A, B], {}),
    "duplicate_sequences": ([A, A.lower()], {}),
    "nucleotides": ([b"ATGAAAACCGCGTATATTGCGAAACAGCGTCAGATTAGC"], {}),
    "latin1_header": ([A], {}),
    "merged_headers": ([A, B], {}),
}

# file -> what the refusal says after the file's name
REFUSED = {
    "empty": ": holds no record; expected a header line that begins with '>'",
    "blank_lines_only": ": holds no record; expected a header line that begins with '>'",
    "nul": ":2: a NUL byte",
    "nul_at_end": ":3: a NUL byte",
    "text_before_first": ":2: text before the first header: 'Downloaded on a Tuesday.'",
    "joined_without_line_end": ":2: '>' inside a sequence line",
    "digit_in_sequence": ":3: '9' after 'KTAYI' is no residue",
    "no_break_space": ":2: character U+00A0 after 'KTAYI' is no residue",
    "utf16": ": is no FASTA but looks like text in UTF-16",
    "fastq_named": ": is no FASTA but looks like FASTQ",
    "genbank_named": ": is no FASTA but looks like a GenBank file",
    "html_named": ": is no FASTA but looks like an HTML page",
    "json_named": ": is no FASTA but looks like JSON",
    "lfs_pointer": ": is no FASTA but looks like a Git LFS pointer",
    "clustal_named": ": is no FASTA but looks like a CLUSTAL alignment",
}


def _write(tmp_path, text):
    path = tmp_path / "file.fasta"
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", READ)
def test_odd_files_give_their_residues_and_counts(name):
    tally = ReadingTally()
    records = list(read_fasta([FILES / f"{name}.fasta"], tally=tally))
    assert ([record.residues for record in records], tally.treatments) == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_cannot_be_read_with_certainty_are_refused_by_name_and_line(name):
    path = FILES / f"{name}.fasta"
    with pytest.raises(FastaError) as caught:
        list(read_fasta([path]))
    assert str(caught.value).startswith(f"{path}{REFUSED[name]}")


def test_every_file_of_the_folder_has_a_stated_treatment():
    assert {path.stem for path in FILES.glob("*.fasta")} == READ.keys() | REFUSED.keys()


def test_identifier_is_the_first_word_and_description_the_rest():
    first, second = read_fasta([FILES / "blanks_and_numbers.fasta"])
    assert (first.identifier, first.description) == ("sp|P00001|A_TEST", "first protein")
    assert (second.identifier, second.description) == ("second", "")


def test_identifier_ends_at_a_tab_or_a_byte_1(tmp_path):
    (record,) = read_fasta([_write(tmp_path, b">first\tword\nMK\n")])
    assert record.identifier == "first"
    assert [record.identifier for record in read_fasta([FILES / "merged_headers.fasta"])] == [
        "gi|1|ref|A.1",
        "gi|3|ref|C.1",
    ]


def test_headers_without_identifier_are_named_by_their_line():
    records = list(read_fasta([FILES / "no_identifier.fasta"]))
    assert [record.identifier for record in records] == ["unnamed:1", "unnamed:3"]
    assert records[1].description == "second"


def test_headers_are_utf8_or_else_latin1(tmp_path):
    (latin,) = read_fasta([FILES / "latin1_header.fasta"])
    (utf8,) = read_fasta([_write(tmp_path, ">first protéine\nMK\n".encode())])
    assert latin.description == utf8.description == "protéine"


@pytest.mark.parametrize("name", ["plain", "crlf", "cr_only", "cr_cr_lf", "mixed_line_ends"])
def test_records_know_the_line_of_their_header(name):
    assert [record.line for record in read_fasta([FILES / f"{name}.fasta"])] == [1, 4]


def test_several_files_are_read_in_order_and_counted_apart():
    tally = ReadingTally()
    paths = [FILES / "plain.fasta", FILES / "gaps.fasta"]
    assert [record.source for record in read_fasta(paths, tally=tally)] == [str(paths[0])] * 2 + [str(paths[1])]
    assert [(source.num_records, source.num_residues) for source in tally.sources] == [(2, 44), (1, 22)]


def test_dash_is_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b">first\nMK\n")))
    (record,) = read_fasta(["-"])
    assert (record.residues, record.source) == (b"MK", "standard input")


def test_gaps_are_kept_on_request():
    (record,) = read_fasta([FILES / "gaps.fasta"], config=FastaConfig(gaps="keep"))
    assert record.residues == A[:8] + b"-.~" + A[8:] + b"--"


def test_gaps_are_refused_on_request():
    with pytest.raises(FastaError, match=r"gaps\.fasta:2: '-' is a gap"):
        list(read_fasta([FILES / "gaps.fasta"], config=FastaConfig(gaps="refuse")))


@pytest.mark.parametrize(("name", "place"), [("stops", r":4: '\*'"), ("rare_letters", ":2: 'J'")])
def test_strict_reading_refuses_what_would_become_x(name, place):
    with pytest.raises(FastaError, match=f"{name}.fasta{place} would become X"):
        list(read_fasta([FILES / f"{name}.fasta"], config=FastaConfig(strict=True)))


def test_strict_reading_takes_stops_at_the_end(tmp_path):
    (record,) = read_fasta([_write(tmp_path, b">first\nMKX*\n")], config=FastaConfig(strict=True))
    assert record.residues == b"MKX"


@pytest.mark.parametrize(
    ("residues", "shown"),
    [
        (b"MK?T", "'?' after 'MK'"),
        ("Mé€T".encode(), r"character U\+00E9 after 'M'"),
        (b"\xe9MK", r"character U\+00E9 is"),
    ],
    ids=["ascii", "UTF-8", "Latin-1"],
)
def test_a_character_that_is_no_residue_is_shown_as_what_it_is(tmp_path, residues, shown):
    with pytest.raises(FastaError, match=shown):
        list(read_fasta([_write(tmp_path, b">first\n" + residues + b"\n")]))


def test_refusal_comes_before_a_file_of_one_endless_line_is_read():
    def pieces():
        yield b'{"results": '
        raise AssertionError("read on")

    parser = fasta.RecordParser("big.json", FastaConfig(), ReadingTally().treatments)
    with pytest.raises(FastaError, match="looks like JSON"):
        list(parser.records(pieces()))


@pytest.mark.parametrize(
    ("identifier", "expected"),
    [
        ("sp|P12345|NAME_HUMAN", "P12345"),
        ("tr|A0A009|A0A009_X", "A0A009"),
        ("UniRef50_A0A009", "UniRef50_A0A009"),
        ("gi|3298468|dbj|BAA31520.1|", "gi|3298468|dbj|BAA31520.1|"),
        ("sp||NAME", "sp||NAME"),
        ("", ""),
    ],
)
def test_accession_is_taken_from_uniprot_identifiers_only(identifier, expected):
    assert accession(identifier) == expected


names = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Z", "C"]), min_size=1)
letters = st.text("ACDEFGHIKLMNPQRSTVWYBJOUXZacdxyz", max_size=120)
line_ends = st.sampled_from(["\n", "\r\n", "\r", "\r\r\n"])


@given(
    st.lists(st.tuples(names, names, letters), min_size=1, max_size=12),
    st.integers(1, 70),
    line_ends,
    st.booleans(),
    st.integers(1, 50),
)
def test_what_is_written_is_read_whatever_the_line_width_line_ends_and_pieces(
    records, width, line_end, ends_with_line_end, piece
):
    lines = []
    for identifier, description, residues in records:
        lines.append(f">{identifier} {description}")
        lines += [residues[start : start + width] for start in range(0, len(residues), width)]
    text = (line_end.join(lines) + line_end * ends_with_line_end).encode()
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    parser = fasta.RecordParser("file", FastaConfig(), ReadingTally().treatments)
    found = [(record.identifier, record.description, record.residues.decode()) for record in parser.records(pieces)]
    assert found == records


@given(st.binary(max_size=400), st.integers(1, 64))
def test_any_bytes_are_read_or_refused_and_pieces_make_no_difference(data, piece):
    def read(pieces):
        parser = fasta.RecordParser("file", FastaConfig(), ReadingTally().treatments)
        try:
            return [record[:3] + record[4:] for record in parser.records(pieces)]
        except FastaError:
            return "refused"

    whole = read([b">first\nMK\n" + data])
    text = b">first\nMK\n" + data
    assert read([text[start : start + piece] for start in range(0, len(text), piece)]) == whole


def test_real_proteins_are_read_as_biopython_reads_them(sample):
    import lzma

    from Bio.SeqIO.FastaIO import SimpleFastaParser

    path = sample / "uniprotkb_sample.fasta.xz"
    with lzma.open(path, "rt") as file:
        expected = [(header, sequence) for header, sequence in SimpleFastaParser(file)]
    found = [(f"{record.identifier} {record.description}", record.residues.decode()) for record in read_fasta([path])]
    assert found == expected
