"""What is no FASTA is named and not read: by its first bytes, or where its text would pass as residues."""

from __future__ import annotations

import io
import pickle
import re
import sqlite3
import zipfile

import numpy as np
import pytest

from proteinlm.errors import FastaError
from proteinlm.sequence import foreign_formats
from proteinlm.sequence.fasta import read_fasta
from proteinlm.sequence.source_blocks import read_source_blocks


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "MKV")
    return file.getvalue()


def _sqlite() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("create table proteins (name)")
    return database.serialize()


def _array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


# what a file begins with -> its name and the way out
FILES = {
    b"\x04\x22\x4d\x18\x64\x40\xa7": "LZ4 data; decompress it first",
    b"\x1f\x9d\x90>b\x98\xf1": "data of compress (.Z); decompress it first",
    b"7z\xbc\xaf\x27\x1c\0\4": "a 7z archive; unpack it first",
    b"Rar!\x1a\x07\x01\0": "a RAR archive; unpack it first",
    b"\x5d\0\0\x80\0\xff": "LZMA data; decompress it first",
    b"{\\rtf1\\ansi >a": "an RTF document; save what it holds as plain text",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0": "an old Word or Excel document; save",
    _zip("proteins.fasta"): "a ZIP archive; unpack it first",
    _zip("[Content_Types].xml"): "a Word or Excel document; save",
    b"%PDF-1.7\n": "a PDF document; save",
    _sqlite(): "an SQLite database; write it as Parquet or CSV",
    b"ARROW1\0\0\xff": "a Feather or Arrow file; write",
    _array(): "a NumPy array; write",
    pickle.dumps("MKV", protocol=4): "a pickle of Python; write",
    b"BAM\x01": "a BAM file; it holds nucleotides",
    b"ATOM      1  N   ALA A   1      11.1\n": "a PDB file; python -c",
    b"MODEL        1\n": "a PDB file; python -c",
    b"REMARK 465 MISSING\n": "a PDB file; python -c",
    b"data_1ABC\n#\n": "an mmCIF file; python -c",
    b">P1;CRAB_ANAPL\nALPHA CRYSTALLIN B CHAIN\nMDITIHNPLI*\n": "PIR (NBRF, MODELLER); python -c",
    b">P1;CRAB_ANAPL\nCRYSTALLIN\nMDITIHNPLI*\n": "PIR (NBRF, MODELLER); python -c",
    b"\r\nC; a comment\r\n\r\n>P1;5fd1\r\nstructureX:5fd1\r\nMK*\r\n": "PIR (NBRF, MODELLER); python -c",
    b">a\nMKV\n>F1;b\nTITLE\nMKV*\n": None,
    b"; comment\nNAME\nMKVL\nMKVL1\n": "IntelliGenetics' format; python -c",
    b"; comment\n>name\nMKVL\n": None,
    b"!!AA_SEQUENCE 1.0\nTitle\n\na.pep  Length: 3  Type: P  Check: 4343  ..\n\n 1 MKV\n": "a sequence of GCG; seqret",
    b"PileUp\n\n a.msf  MSF: 131  Type: P  Jan 01, 2026 12:00  Check: 44  ..\n": "an MSF alignment; python -c",
    b"CLUSTAL W (1.83)\n\na  MKV\nb  MKV\n   ***\n": "a CLUSTAL alignment; python -c",
    b" 2 3\na  MKV\nb  MKV\n": "a PHYLIP alignment; python -c",
    b"#NEXUS\nbegin data;\n": "a NEXUS file; python -c",
    b"#mega\n!Title proteins;\n#a\nMKV\n": "a MEGA file; MEGA itself exports FASTA",
    b"# STOCKHOLM 1.0\na MKV\n//\n": "a Stockholm alignment; python -c",
    b"LOCUS       X 20 bp DNA\n": "a GenBank file of nucleotides; python -c",
    b"LOCUS       X 20 aa linear\n": "a GenBank file; python -c",
    b">ss_pred PSIPRED\nCCHHHHEE\n>a\nMKV\n": "A3M or FASTA with secondary structure among its records",
    b">1ABC:A:sequence\nMKV\n>1ABC:A:secstr\nHHH\n": "A3M or FASTA with secondary structure among its records",
    b">a\nMKVlag--\n>b\nMK..L\n": None,
}


@pytest.mark.parametrize(("content", "name"), FILES.items(), ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("read", [read_fasta, read_source_blocks])
def test_a_file_of_another_format_is_named_with_the_way_out(read, tmp_path, content, name):
    path = tmp_path / "proteins.fasta"
    path.write_bytes(content)
    if name is None:
        assert list(read([path]))
        return
    with pytest.raises(FastaError) as caught:
        list(read([path]))
    assert str(caught.value).startswith(f"{path}: is no FASTA but looks like {name}")


def test_every_converter_that_is_advised_exists():
    from Bio import AlignIO, SeqIO

    advised = [re.search(r"convert\('FILE', '([^']+)'", name) for _, name in foreign_formats._TEXTS]
    formats = {found[1] for found in advised if found}
    assert len(formats) > 8
    assert formats <= SeqIO._FormatToIterator.keys() | AlignIO._FormatToIterator.keys()


@pytest.mark.parametrize(
    "line", ["Homo sapiens", "alpha crystallin B chain", "LYSOZYME PRECURSOR *", "End of file", "MKV LAGTW"]
)
@pytest.mark.parametrize("place", [1, 2])
def test_words_of_a_title_are_no_residues(tmp_path, line, place):
    lines = [">a", "MKTAYIAKQR QISFVKSHFS RQ", "LEERLGLIEV"]
    lines.insert(place, line)
    path = tmp_path / "proteins.fasta"
    path.write_text("\n".join(lines) + "\n")
    for read in (read_fasta, read_source_blocks):
        with pytest.raises(FastaError, match=rf":{place + 1}: '{re.escape(line)}' are words, not residues in blocks"):
            list(read([path]))


@pytest.mark.parametrize(
    "line",
    [
        "MKTAYIAKQR QISFVKSHFS RQ",
        "  1 MKTAYIAKQR QISFVKSHFSRQ  22",
        "MKTAYI AKQRQI\tSFVKSH",
        "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV QAPILSRVGDG",
        " MKTAYI ",
    ],
)
def test_residues_in_blocks_are_read(tmp_path, line):
    path = tmp_path / "proteins.fasta"
    path.write_text(f">a\n{line}\n")
    (record,) = read_fasta([path])
    assert record.residues.decode() == re.sub(r"[\s\d]", "", line)
