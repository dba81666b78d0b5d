"""Files that are no FASTA, told by how they begin, so that the refusal can name them."""

from __future__ import annotations

import re

from proteinlm.sequence.compression import compression_of

# opening bytes, after blanks -> what such a file is; the longer opening stands first
_OPENINGS: tuple[tuple[bytes, str], ...] = (
    (b"@", "FASTQ or SAM"),
    (b"LOCUS ", "a GenBank file"),
    (b"ID   ", "a UniProt or EMBL flat file"),
    (b"<!doctype html", "an HTML page (often an error message saved by a download)"),
    (b"<html", "an HTML page (often an error message saved by a download)"),
    (b"<", "XML or HTML"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with 'git lfs pull'"),
    (b"CLUSTAL", "a CLUSTAL alignment"),
    (b"MUSCLE", "a CLUSTAL alignment"),
    (b"# STOCKHOLM", "a Stockholm alignment"),
    (b"#NEXUS", "a NEXUS file"),
    (b"##gff", "a GFF file"),
    (b"HEADER ", "a PDB file"),
    (b"data_", "an mmCIF file"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
)

_UNICODE_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b">\0", "UTF-16"),
    (b"\0>", "UTF-16"),
)

# possessive: a text that is none is not tried in every other division into such parts
_UNIREF = re.compile(rb"(?:\s+|<[?!][^>]*+>)*+<UniRef[\s>0-9]")


def foreign_format(opening: bytes) -> str | None:
    """Return what a file is that begins with ``opening``, or None where it may be FASTA."""
    for mark, encoding in _UNICODE_MARKS:
        if opening.startswith(mark):
            return f"text in {encoding}; save it as UTF-8 or plain ASCII"
    if (compression := compression_of(opening)) is not None:
        return f"{compression} data inside compressed data; decompress it once more"
    if opening[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if _UNIREF.match(opening):
        return "UniRef's XML, which says who is in which cluster; give it to ingest by --clusters"
    text = opening.lstrip()[:64].lower()
    return next((name for start, name in _OPENINGS if text.startswith(start.lower())), None)
