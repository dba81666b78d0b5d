"""What Python hands over is taken as documented; all else is refused, in the words of the command line."""

from __future__ import annotations

import io
import string
import types
from collections import namedtuple
from pathlib import Path

import numpy
import pytest

from proteinlm.errors import FastaError
from proteinlm.inference.given_sequences import given_sequences, refuse_other_than_sequences
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.sequence.fasta import FastaRecord, read_fasta

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"
# of a file they end lines and headers, or say that it is damaged; of a text they are blanks or no residues
OF_FILES = "\n\r\0"


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ({"a": PROTEIN}, r"found a dict, whose keys would be embedded; write sequences\.items\(\)"),
        (types.SimpleNamespace(columns=["id", "sequence"]), "whose column names would be embedded; write zip"),
        (PROTEIN, r"found a single str; expected an iterable of sequences: write \[sequence\]"),
        (PROTEIN.encode(), r"found a single bytes.*write \[sequence\]"),
        (FastaRecord("a", "", b"MKV", "x", 1), r"found a single FastaRecord.*write \[sequence\]"),
        ("proteins.fasta", r"the name of a file, 'proteins\.fasta'.*write read_fasta\(\['proteins\.fasta'\]\)"),
        (Path("proteins"), r"write read_fasta\(\['proteins'\]\)"),
        (io.StringIO(">a\nMKV\n"), "found an open file"),
        (7, "found a value of type int"),
    ],
    ids=["dict", "table", "str", "bytes", "record", "file name", "path", "open file", "number"],
)
def test_what_is_no_series_of_sequences_is_refused_before_anything_is_drawn(
    pretrained: PretrainedModel, sequences: object, message: str
):
    with pytest.raises(FastaError, match=message):
        pretrained.embed(sequences)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("proteins.fasta", "sequence 2: found the name of a file, 'proteins.fasta'"),
        (">a\nMKV\n", r"sequence 2: found FASTA text, '>a\\nMKV'"),
        ("\ufeff>a\nMKV\n", "sequence 2: found FASTA text"),
        ("MK<mask>V", "sequence 2: '<' after 'MK' is no residue"),
        ("12345", "sequence 2: '1' is no residue"),
        ("MKV\nLA?\n", r"sequence 2, line 2: '\?' after 'LA' is no residue"),
        (("x", "MK9"), r"sequence 2 \('x'\): '9' after 'MK' is no residue"),
        (("x", "proteins.fa.gz"), r"sequence 2 \('x'\): found the name of a file"),
        ((PROTEIN, "insulin"), "the identifier reads like residues and the residues, 'insulin', like a name"),
        ((PROTEIN, "sp|P12345|X"), r"sequence 2 \('MKTAYIAKQRQISFVKSHFSRQ'\): '\|' after 'sp' is no residue"),
        (("x", 3), r"found a tuple of \(str, int\)"),
        (("x", PROTEIN, "y"), r"found a tuple of \(str, str, str\)"),
        ((), r"found a tuple of \(\)"),
        (["x", PROTEIN], "sequence 2: found a value of type list"),
        (PROTEIN.encode(), "found a value of type bytes"),
        (numpy.nan, "found a value of type float"),
        (None, "found a value of type NoneType"),
        (FastaRecord("x", "", b"MK9", "x.fasta", 4), r"x\.fasta:4: 'x': '9' after 'MK' is no residue"),
    ],
    ids=ascii,
)
def test_what_is_no_sequence_is_refused_with_its_place(pretrained: PretrainedModel, sequence: object, message: str):
    with pytest.raises(FastaError, match=message):
        list(pretrained.embed(["MKV", "MKL", sequence]))  # type: ignore[list-item]


def outcome(take) -> str | bytes:
    """Return the residues, or the reason without the place."""
    try:
        return take()
    except FastaError as error:
        return str(error).split(": ", 1)[1]


@pytest.mark.parametrize("context", ["MK{}V", "{}", "MKV {}", "{} MKV 61", "MKV{}"], ids=ascii)
def test_every_character_is_taken_or_refused_as_in_a_fasta_file(tmp_path: Path, context: str):
    path = tmp_path / "x.fasta"
    others = "\xa0\xad\xdfé\u2028\u3000\ufeff\uff2d😀"
    for character in [c for c in string.printable + others if c not in OF_FILES]:
        text = context.format(character)
        if text.startswith((">", ";", "#", "!")) or text.startswith("\ufeff"):
            continue  # a header, comments and a mark, which only lines of a file have
        path.write_text(f">a\n{text}\n", encoding="utf-8")
        from_file = outcome(lambda: next(read_fasta([path])).residues)
        from_text = outcome(lambda text=text: next(given_sequences([("a", text)])).residues)
        assert from_text == from_file, ascii(character)


@pytest.mark.parametrize(
    "sequences",
    [
        [("a", PROTEIN)],
        {"a": PROTEIN}.items(),
        zip(["a"], [PROTEIN], strict=True),
        [namedtuple("Row", ["name", "sequence"])("a", PROTEIN)],
        [FastaRecord("a", "", PROTEIN.encode(), "x", 1)],
        numpy.array([PROTEIN]),
        (sequence for sequence in [PROTEIN]),
        [f"  {PROTEIN[:9]}\n{PROTEIN[9:]}*\r\n"],
        [(PROTEIN, PROTEIN[3:9].lower())],
    ],
    ids=["pair", "items", "zip", "row", "record", "array", "generator", "lines", "part named by the whole"],
)
def test_what_is_documented_is_taken(sequences):
    refuse_other_than_sequences(sequences)
    (given,) = given_sequences(sequences)
    assert given.residues.upper() in (PROTEIN.encode(), PROTEIN[3:9].encode())


def test_gaps_that_reading_has_kept_stay():
    (given,) = given_sequences([FastaRecord("a", "", b"MK-.~V", "x", 1)])
    assert given.residues == b"MK-.~V"


def test_nucleotides_are_warned_of_in_the_words_of_ingest(pretrained: PretrainedModel):
    with pytest.warns(UserWarning, match="nucleotides") as warned:
        list(pretrained.embed([PROTEIN, ("gene", "ACGT" * 10), "ACGU" * 10]))
    assert [str(warning.message) for warning in warned] == [
        "sequence 1 ('gene'): 1 sequence looks like nucleotides, not like a protein",
        "2 sequences look like nucleotides, not like a protein",
    ]
