"""UniProt's flat file and XML give what its FASTA gives, and damage is refused by line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
from pathlib import Path

import pytest

from proteinlm.errors import FastaError
from proteinlm.sequence.entries import read_entries, read_records
from proteinlm.sequence.fasta import FastaConfig, ReadingTally, read_fasta
from proteinlm.sequence.foreign_formats import foreign_format
from proteinlm.sequence.source_formats import format_of, format_of_opening
from proteinlm.sequence.uniprot import scientific_name

FILES = Path(__file__).parent.parent / "data" / "uniprot"
FORMATS = {"entries.dat": "uniprot_flat", "entries.xml": "uniprot_xml"}


def _fields(records):
    return [(record.identifier, record.description, record.residues) for record in records]


@pytest.fixture(params=FORMATS)
def file(request):
    return FILES / request.param


@pytest.fixture
def damaged(tmp_path):
    """Write a file of entries with some text replaced; return its path."""

    def write(name, old, new, count=1):
        text = (FILES / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new, count))
        return tmp_path / name

    return write


def _refusal(path):
    with pytest.raises(FastaError) as caught:
        list(read_records([path]))
    return str(caught.value)


def test_entries_are_the_records_of_the_fasta_of_the_same_release(file):
    assert _fields(read_records([file])) == _fields(read_fasta([FILES / "entries.fasta"]))


def test_formats_of_any_mixture_are_told_by_content(tmp_path):
    paths = [FILES / "entries.xml", FILES / "entries.fasta", FILES / "entries.dat"]
    renamed = [tmp_path / str(number) for number in range(3)]
    for path, new in zip(paths, renamed, strict=True):
        new.write_bytes(path.read_bytes())
    assert len(list(read_records(renamed))) == 9


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress], ids=["gz", "xz", "bz2"])
def test_compressed_entries_are_read(file, compress, tmp_path):
    path = tmp_path / "entries"
    path.write_bytes(compress(file.read_bytes()))
    assert format_of(path) == FORMATS[file.name]
    assert _fields(read_records([path])) == _fields(read_records([file]))


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_standard_input_is_told_without_being_read(file, compress, monkeypatch):
    text = io.BufferedReader(io.BytesIO(compress(file.read_bytes())))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(text))
    assert format_of("-") == FORMATS[file.name]
    records = list(read_records(["-"]))
    assert (len(records), records[0].source) == (3, "standard input")


def test_an_opening_of_many_parts_is_told_at_once():
    # tried in every division into blanks and comments, these would take days
    for opening in (b"<!DOCTYPE html>" + b" " * 60, b"<!--a-->" * 60, b"<?a?>" * 60 + b" \n" * 60):
        assert format_of_opening(opening + b"<html>") == "fasta"
        assert "HTML" in foreign_format(opening + b"<html>")
        assert format_of_opening(opening + b"<uniprot>") == "uniprot_xml"
        assert "UniRef" in foreign_format(opening + b"<UniRef50>")


def test_lines_are_those_where_entries_begin(file):
    texts = file.read_text().splitlines()
    begins = [number for number, text in enumerate(texts, 1) if text.startswith(("ID", "<entry"))]
    assert [record.line for record in read_records([file])] == begins


@pytest.mark.parametrize("line_end", ["\r\n", "\r"], ids=["crlf", "cr"])
def test_line_ends_make_no_difference(file, line_end, tmp_path):
    path = tmp_path / "entries"
    path.write_bytes(file.read_bytes().replace(b"\n", line_end.encode()))
    assert _fields(read_records([path])) == _fields(read_records([file]))


def test_a_byte_order_mark_makes_no_difference(file, tmp_path):
    path = tmp_path / "entries"
    path.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert _fields(read_records([path])) == _fields(read_records([file]))


def test_skipped_entries_are_not_counted(file):
    tally = ReadingTally()
    records = list(read_entries(file, FORMATS[file.name], tally=tally, skip=2))
    assert _fields(records) == _fields(read_records([file]))[2:]
    assert (tally.sources[0].num_records, tally.sources[0].num_residues) == (1, 160)
    assert tally.sources[0].digest.num_bytes == file.stat().st_size


def test_piece_boundaries_make_no_difference(file, monkeypatch):
    whole = _fields(read_records([file]))
    for size in (1, 7, 100):
        monkeypatch.setattr("proteinlm.sequence.compression.PIECE", size)
        assert _fields(read_entries(file, FORMATS[file.name])) == whole


@pytest.mark.parametrize("name", FORMATS)
def test_the_file_is_refused_wherever_it_is_cut(name, tmp_path):
    text = (FILES / name).read_bytes()
    path = tmp_path / name
    # what follows the last end mark of a flat file is nothing; a whole number of its entries is a file
    ends = {place for place in range(len(text)) if text[:place].rstrip().endswith(b"\n//")}
    for size in range(400, len(text.rstrip()), 53):
        path.write_bytes(text[:size])
        if size not in ends:
            with pytest.raises(FastaError):
                list(read_records([path]))


LETTER = "a changed residue"
DAMAGES = {
    "entries.dat": {
        LETTER: ("     MKVLAAGIVG", "     MKVLAAGIVC", ":1: the sequence of P00001 has the CRC64"),
        "a lost line of residues": ("     MSDSTWYVMS DSTWYVMSDS TWYVMSDSTW", "//\n     ", ":"),
        "a lost end mark": ("//\n", "", ":1: the entry has no end mark '//' before the next one at line 30"),
        "two end marks": ("//\n", "//\n//\n", ":31: '//' stands where an entry begins"),
        "no sequence": ("     GSHMACDEFG HIKL\n", "", ":31: the sequence of A0A000AAA0 is missing"),
        "a wrong length": ("14 AA.", "15 AA.", ":31: the entry is no entry of UniProt (its line ID says 15"),
        "no line SQ": ("SQ   SEQUENCE   14", "KW   SEQUENCE   14", ":"),
        "no accession": ("AC   A0A000AAA0;\n", "", ":31: the entry is no entry of UniProt"),
        "blanks in a name": ("AC   P00003;", "AC   P00 003;", ": the entry has the accession 'P00 003'"),
        "a class of its own": ("Unreviewed;", "Anything;", ":31: the entry is no entry of UniProt"),
        "an unknown line code": ("KW   Ref", "QQ   Ref", ":1: the entry is no entry of UniProt (Unknown keyword 'QQ'"),
        "text between": ("//\nID", "//\nhello\nID", ":31: 'hello' stands where an entry begins"),
        "no check sum": ("CRC64;", "ARC64;", ":1: the entry is no entry of UniProt (its check sum is a ARC64"),
        "a NUL byte": ("RA   Nobody", "RA   No\0dy", ":19: a NUL byte"),
    },
    "entries.xml": {
        LETTER: (">MKVLAAGIVG", ">MKVLAAGIVC", ":3: the sequence of P00001 has the CRC64"),
        "a lost end mark": ("</entry>\n", "", ":3: the entry has no end before the next one"),
        "two end marks": ("</entry>\n", "</entry>\n</entry>\n", ":37: '</entry>' ends no entry"),
        "no sequence": (">GSHMACDEFGHIKL<", "><", ": the entry is no entry of UniProt"),
        "no element of a sequence": (
            '<sequence length="14"',
            '<sequencer length="14"',
            ": the entry is no entry of UniProt",
        ),
        "a wrong length": ('length="14"', 'length="15"', ": the sequence of A0A000AAA0 has 14 residues where"),
        "no accession": (
            "  <accession>A0A000AAA0</accession>\n",
            "",
            ": the entry is no entry of UniProt ('accessions')",
        ),
        "a data set of its own": (
            "TrEMBL",
            "Anything",
            ": the entry is no entry of UniProt (its data set is 'Anything'",
        ),
        "text between": ("</entry>\n<entry", "</entry>\nhello\n<entry", "'hello' stands between entries"),
        "no end": ("</uniprot>", "", "does not end with '</uniprot>'"),
        "two sequences": ("</sequence>", '</sequence><sequence length="0">', ":3: the entry is no entry of UniProt"),
        "a sequence twice": ("  <sequence", '  <sequence length="1">M</sequence>\n  <sequence', "(it has 2 sequences)"),
        "damage in what is left out": (
            "made up.</text>",
            "made up.",
            ":3: the entry is no entry of UniProt (mismatched",
        ),
        "a NUL byte": ("<name>FIRST", "<name>\0FIRST", ":3: the entry is no entry of UniProt"),
        "a second file": ("</uniprot>", "</uniprot><uniprot>", "does not end with '</uniprot>'"),
    },
}


@pytest.mark.parametrize(
    ("name", "damage"), [(name, damage) for name, damages in DAMAGES.items() for damage in damages]
)
def test_damage_is_refused_with_its_place(name, damage, damaged):
    old, new, message = DAMAGES[name][damage]
    path = damaged(name, old, new)
    found = _refusal(path)
    assert found.startswith(f"{path}:")
    assert message in found
    assert "\n" not in found


def test_residues_are_treated_like_those_of_fasta(damaged):
    from Bio.SeqUtils.CheckSum import crc64

    old, new = crc64("GSHMACDEFGHIKL")[4:], crc64("GshMACJEFG*IK*")[4:]
    path = damaged("entries.dat", "     GSHMACDEFG HIKL", "     GshMACJEFG *IK*")
    path.write_text(path.read_text().replace(old, new))
    tally = ReadingTally()
    assert [*read_records([path], tally=tally)][1].residues == b"GshMACJEFG*IK"
    assert tally.treatments == {"stops at the end": 1, "sequences with a stop inside": 1}
    with pytest.raises(FastaError, match=":52: 'J' would become X"):
        list(read_records([path], config=FastaConfig(strict=True)))


def test_a_sequence_line_that_fasta_calls_a_comment_is_refused(damaged):
    from Bio.SeqUtils.CheckSum import crc64

    path = damaged("entries.dat", "     GSHMACDEFG HIKL", "     #SHMACDEFG HIKL")
    path.write_text(path.read_text().replace(crc64("GSHMACDEFGHIKL")[4:], crc64("#SHMACDEFGHIKL")[4:]))
    assert ":52: '#' is no residue" in _refusal(path)


def test_read_fasta_says_what_reads_them(file):
    with pytest.raises(FastaError, match=r"is no FASTA but looks like .*; 'proteinlm ingest' reads one"):
        next(read_fasta([file]))


def test_other_flat_files_and_xml_are_still_refused(tmp_path):
    path = tmp_path / "other"
    for text, name in (
        ("ID   X56734; SV 1; linear; mRNA; STD; PLN; 1859 BP.\n", "a UniProt or EMBL flat file"),
        ('<?xml version="1.0"?>\n<UniRef xmlns="http://uniprot.org/uniref">\n', "UniRef's XML"),
        ("<html><body><uniprot>", "an HTML page"),
    ):
        path.write_text(text)
        assert f"is no FASTA but looks like {name}" in _refusal(path)


@pytest.mark.parametrize(
    ("organism", "name"),
    [
        ("Homo sapiens (Human)", "Homo sapiens"),
        ("Escherichia coli (strain K12)", "Escherichia coli (strain K12)"),
        ("Pongo abelii (Sumatran orangutan) (Pongo pygmaeus abelii)", "Pongo abelii"),
        ("Hepatitis C virus genotype 1a (isolate H77) (HCV)", "Hepatitis C virus genotype 1a (isolate H77)"),
        ("Virus (strain A (B) C) (AV)", "Virus (strain A (B) C)"),
        ("Virus (strain A", "Virus (strain A"),
    ],
)
def test_common_names_are_no_part_of_the_scientific_name(organism, name):
    assert scientific_name(organism) == name


def test_memory_does_not_grow_with_the_number_of_entries(file, tmp_path):
    import tracemalloc

    text = file.read_bytes()
    # the elements around the entries of the XML
    start, end = max(text.find(b"<entry"), 0), text.find(b"<copyright") if b"<copyright" in text else len(text)
    peaks = []
    for times in (100, 400):
        path = tmp_path / "entries"
        path.write_bytes(text[:start] + text[start:end] * times + text[end:])
        tracemalloc.start()
        assert sum(1 for _ in read_records([path])) == 3 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


def test_real_entries_are_read(shared_data):
    folder = shared_data / "sequences"
    (sevenless,) = read_records([folder / "sevenless_drome_7LESS.dat"])
    assert (sevenless.identifier, len(sevenless.residues)) == ("sp|P13368|7LESS_DROME", 2554)
    records = list(read_records([folder / "uniprot_sample.xml.xz"]))
    assert (len(records), sum(len(record.residues) for record in records)) == (250, 52_427)


def test_real_entries_are_those_of_biopython(shared_data):
    from Bio import SeqIO

    path = shared_data / "sequences" / "uniprot_sample.xml.xz"
    with lzma.open(path) as file:
        expected = [(found.id, found.name, bytes(found.seq)) for found in SeqIO.parse(file, "uniprot-xml")]
    records = list(read_records([path]))
    assert [(*record.identifier.split("|")[1:], record.residues) for record in records] == expected


def test_a_real_entry_of_no_class_is_refused(shared_data):
    message = _refusal(shared_data / "sequences" / "uniprot_core_entries.dat.xz")
    assert ":4508: the entry is no entry of UniProt (Unrecognized data class 'THIS_IS_WRONG'" in message
