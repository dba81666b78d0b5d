"""Files that are no FASTA, told by how they begin, so that the refusal can name them and a way out."""

from __future__ import annotations

import re

from proteinlm.sequence.compression import compression_of


def _by_biopython(name: str) -> str:
    return f"""; python -c "from Bio import SeqIO; SeqIO.convert('FILE', '{name}', 'NEW.fasta', 'fasta')" converts it"""


_DECOMPRESS = "; decompress it first"
_UNPACK = "; unpack it first"
_AS_TABLE = "; write it as Parquet or CSV, which 'proteinlm ingest' reads"
_AS_TEXT = "; save what it holds as plain text"
_TRANSLATE = "; it holds nucleotides, so translate them first"

# the first bytes of a file that is no text -> what it is, and the way out
_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x04\x22\x4d\x18", f"LZ4 data{_DECOMPRESS}"),
    (b"\x02\x21\x4c\x18", f"LZ4 data{_DECOMPRESS}"),
    (b"\x1f\x9d", f"data of compress (.Z){_DECOMPRESS}"),
    (b"LZIP\x01", f"lzip data{_DECOMPRESS}"),
    (b"\x89LZO\0", f"lzop data{_DECOMPRESS}"),
    (b"\x5d\0\0", f"LZMA data{_DECOMPRESS}"),
    (b"\xff\x06\0\0sNaPpY", f"snappy data{_DECOMPRESS}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive{_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive{_UNPACK}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Word or Excel document{_AS_TEXT}"),
    (b"{\\rtf", f"an RTF document{_AS_TEXT}"),
    (b"%PDF", f"a PDF document{_AS_TEXT}"),
    (b"%!PS", f"a PostScript document{_AS_TEXT}"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"\x89HDF", f"an HDF5 file{_AS_TABLE}"),
    (b"SQLite format 3\0", f"an SQLite database{_AS_TABLE}"),
    (b"ARROW1\0\0", f"a Feather or Arrow file{_AS_TABLE}"),
    (b"\xff\xff\xff\xff", f"an Arrow stream{_AS_TABLE}"),
    (b"FEA1", f"a Feather file{_AS_TABLE}"),
    (b"Obj\x01", f"an Avro file{_AS_TABLE}"),
    (b"\x93NUMPY", f"a NumPy array{_AS_TABLE}"),
    (b"\x80\x04\x95", f"a pickle of Python{_AS_TABLE}"),
    (b"BAM\x01", f"a BAM file{_TRANSLATE}"),
    (b"CRAM\x03", f"a CRAM file{_TRANSLATE}"),
)
_ZIPPED: tuple[tuple[bytes, str], ...] = (
    (b"[Content_Types].xml", f"a Word or Excel document{_AS_TEXT}, or as CSV"),
    (b"application/vnd.oasis", f"an OpenDocument file{_AS_TEXT}, or as CSV"),
    (b"PK", f"a ZIP archive{_UNPACK}"),
)
# how a text begins, behind blanks -> what it is, and the way out
_TEXTS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (rb"@", "FASTQ or SAM" + _TRANSLATE),
        (rb"LOCUS .* bp ", "a GenBank file of nucleotides" + _by_biopython("genbank-cds")),
        (rb"LOCUS ", "a GenBank file" + _by_biopython("genbank")),
        (rb"ID   ", "a UniProt or EMBL flat file" + _by_biopython("embl-cds")),
        (rb"(?i)<!doctype html|<html", "an HTML page (often an error message saved by a download)"),
        (rb"<", "XML or HTML"),
        (rb"[{\[]", "JSON"),
        (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
        (rb"(?i)CLUSTAL|MUSCLE|PROBCONS|MSAPROBS|KALIGN", "a CLUSTAL alignment" + _by_biopython("clustal")),
        (rb"(?i)# STOCKHOLM", "a Stockholm alignment" + _by_biopython("stockholm")),
        (rb"(?i)#NEXUS", "a NEXUS file" + _by_biopython("nexus")),
        (rb"(?i)#MEGA", "a MEGA file; MEGA itself exports FASTA"),
        (rb"##maf", "a MAF alignment" + _by_biopython("maf")),
        (rb"\d+[ \t]+\d+[ \t]*[\r\n]", "a PHYLIP alignment" + _by_biopython("phylip-relaxed")),
        (rb"(?i)##gff", "a GFF file" + _TRANSLATE),
        (rb"HMMER\d", "a profile of HMMER; 'hmmemit -c' writes its consensus"),
        (rb"T?BLAST[NPX] \d", "a report of BLAST"),
        (
            rb"(?:HEADER|COMPND|SOURCE|KEYWDS|EXPDTA|REMARK|SEQRES|CRYST1|HETATM|(?:TITLE|MODEL) |ATOM  )(?:  | *\d)",
            "a PDB file" + _by_biopython("pdb-atom"),
        ),
        (rb"(?i)data_", "an mmCIF file" + _by_biopython("cif-atom")),
        # possessive, as all below: a text that is none is not tried in every other division into such parts
        (rb"(?:[CR];[^\r\n]*+\s+)*+>(?:P1|F1|D[LC1]|R[LC]|N[13]|XX);", "PIR (NBRF, MODELLER)" + _by_biopython("pir")),
        (
            rb"(?:;[^\r\n]*+\s+)++[^\r\n;>]++\s+[A-Za-z*\s-]++[12](?:\s|$)",
            "IntelliGenetics' format" + _by_biopython("ig"),
        ),
    )
)
_UNICODE_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b">\0", "UTF-16"),
    (b"\0>", "UTF-16"),
)

_UNIREF = re.compile(rb"(?:\s+|<[?!][^>]*+>)*+<UniRef[\s>0-9]")
_ALIGNMENT_OF_GCG = re.compile(rb"\bMSF: *\d+ .*Check: *\d+ *\.\.")
_GCG = re.compile(rb"\bCheck: *\d+ *\.\.")
# letters of secondary structure are letters of residues too
_WITH_STRUCTURE = (
    "A3M or FASTA with secondary structure among its records; take these out first, "
    "as 'reformat.pl a3m fas -noss' of HH-suite does"
)
_STRUCTURE = re.compile(rb"^>(?:ss_(?:pred|conf|dssp)|\S+:(?:secstr|disorder))\b", re.MULTILINE)


def foreign_format(opening: bytes) -> str | None:
    """Return what a file is that begins with ``opening``, and the way out; None where it may be FASTA."""
    for mark, encoding in _UNICODE_MARKS:
        if opening.startswith(mark):
            return f"text in {encoding}; save it as UTF-8 or plain ASCII"
    if (compression := compression_of(opening)) is not None:
        return f"{compression} data inside compressed data; decompress it once more"
    if opening[257:262] == b"ustar":
        return f"a tar archive{_UNPACK}"
    if opening.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next(name for content, name in _ZIPPED if content in opening)
    found = next((name for magic, name in _MAGICS if opening.startswith(magic)), None)
    return found or _foreign_text(opening.lstrip())


def _foreign_text(text: bytes) -> str | None:
    if _UNIREF.match(text):
        return "UniRef's XML, which says who is in which cluster; give it to ingest by --clusters"
    if found := next((name for pattern, name in _TEXTS if pattern.match(text)), None):
        return found
    if text.startswith(b">"):
        return _WITH_STRUCTURE if _STRUCTURE.search(text) else None
    if _ALIGNMENT_OF_GCG.search(text):
        return "an MSF alignment" + _by_biopython("msf")
    return "a sequence of GCG; seqret of EMBOSS converts it" if _GCG.search(text) else None
