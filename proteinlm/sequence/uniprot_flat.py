"""UniProt's flat file, entry by entry: cut into entries here, each read by Biopython."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from proteinlm.errors import FastaError
from proteinlm.sequence.compression import PieceReader
from proteinlm.sequence.uniprot import (
    LARGEST_ENTRY,
    REVIEWED,
    UNREVIEWED,
    UniprotEntry,
    check_entry,
    refuse,
    without_evidence,
)

_DATABASES = {"Reviewed": REVIEWED, "Unreviewed": UNREVIEWED, "STANDARD": REVIEWED, "PRELIMINARY": UNREVIEWED}
# lines of annotation, nine tenths of an entry: nothing in a header comes from them
_ANNOTATION = {"RN", "RP", "RC", "RX", "RG", "RA", "RT", "RL", "CC", "DR", "KW", "FT", "OC", "OG", "OH", "**"}
# and a byte order mark, as Latin-1 has it
_BLANKS = " \t\n\x0b\x0cï»¿"
_PROTEIN = re.compile(r"(?:RecName|SubName): Full=(.*?)(?: \{ECO:[^}]*\})?;(?: |$)")
_FLAGS = re.compile(r"Flags:[^:]*\b(Fragments?);")


@dataclass(slots=True)
class _Cut:
    """The lines of one entry that matter, as they were cut out of the file."""

    line: int
    lines: list[str]
    sequence: list[str] = field(default_factory=list)
    sequence_line: int = 0  # of SQ; 0 before it
    size: int = 0


def read_flat_file(pieces: Iterable[bytes], source: str, *, skip: int = 0) -> Iterator[UniprotEntry]:
    """Yield the entries of a flat file.

    Args:
        pieces: its bytes.
        source: its name.
        skip: entries to pass over at the beginning.

    Raises:
        FastaError: ``source:line: …`` if an entry is damaged, cut off or not what it says of itself.
    """
    for number, cut in enumerate(_cut_entries(pieces, source)):
        if number >= skip:
            entry = _read_entry(cut, source)
            check_entry(entry, source)
            yield entry


def _cut_entries(pieces: Iterable[bytes], source: str) -> Iterator[_Cut]:
    # Latin-1 takes any bytes and gives them back; every kind of line end becomes \n
    lines = io.TextIOWrapper(io.BufferedReader(PieceReader(pieces), 1 << 18), encoding="latin-1", newline=None)
    cut: _Cut | None = None
    for line, text in enumerate(lines, 1):
        if not text.strip(_BLANKS):
            continue
        if cut is None:
            if not text.lstrip(_BLANKS).startswith("ID   "):
                refuse(source, line, f"{text.strip()[:40]!r} stands where an entry begins; expected a line 'ID'")
            cut = _Cut(line, [text.lstrip(_BLANKS)])
        elif text.startswith("//"):
            cut.lines.append("//\n")
            yield cut
            cut = None
        else:
            _add_line(cut, text, line, source)
    if cut is not None:
        refuse(source, cut.line, "the entry has no end mark '//'")


def _add_line(cut: _Cut, text: str, line: int, source: str) -> None:
    cut.size += len(text)
    code = text[:2]
    if code == "ID":
        refuse(source, cut.line, f"the entry has no end mark '//' before the next one at line {line}")
    if cut.size > LARGEST_ENTRY:
        refuse(source, cut.line, f"the entry has no end mark '//' within {LARGEST_ENTRY:,} bytes")
    if "\0" in text:
        refuse(source, line, "a NUL byte, which no flat file holds")
    if (code == "  ") != bool(cut.sequence_line) or (code not in {"  ", "**"} and text[2:5].strip()):
        refuse(source, line, f"{text.strip()[:40]!r} does not belong at this place of an entry")
    if code == "  ":
        cut.sequence.append("".join(text.split()))
    elif code == "SQ":
        cut.sequence_line = line
    if code not in _ANNOTATION:
        cut.lines.append(text)


def _read_entry(cut: _Cut, source: str) -> UniprotEntry:
    from Bio import SwissProt

    text = "".join(cut.lines)
    # where it is no UTF-8, Latin-1 it is
    with suppress(UnicodeDecodeError):
        text = text.encode("latin-1").decode()
    try:
        record = SwissProt.read(io.StringIO(text))
        return _entry_of(record, cut)
    except Exception as error:  # Biopython meets damage with ValueError, AssertionError, IndexError and more
        reason = " ".join(str(part).strip() for part in (error, getattr(error, "line", None)) if part)
        raise FastaError(
            f"{source}:{cut.line}: the entry is no entry of UniProt ({reason or type(error).__name__}); "
            "mend it or fetch the file again"
        ) from error


def _entry_of(record: Any, cut: _Cut) -> UniprotEntry:
    if record.data_class not in _DATABASES:
        raise ValueError(f"its class is {record.data_class!r}; expected Reviewed or Unreviewed")
    if not cut.sequence_line:
        raise ValueError("it has no line SQ")
    length, _, checksum = record.seqinfo
    kind = next(line for line in cut.lines if line.startswith("SQ")).split()[-1].rstrip(";.")
    if kind not in {"CRC64", "CRC32"}:
        raise ValueError(f"its check sum is a {kind}; expected CRC64, or CRC32 in old files")
    if length != record.sequence_length:
        raise ValueError(f"its line ID says {record.sequence_length:,} residues and its line SQ {length:,}")
    if record.sequence != "".join(cut.sequence):
        raise ValueError("its sequence lines are not set as they should be")
    protein = _PROTEIN.search(record.description)
    flags = _FLAGS.search(record.description)
    return UniprotEntry(
        line=cut.line,
        body_line=cut.sequence_line + 1,
        body="\n".join(cut.sequence).encode("latin-1"),
        database=_DATABASES[record.data_class],
        accession=record.accessions[0],
        name=record.entry_name,
        protein=protein[1] if protein else record.description.rstrip("."),
        fragment=flags[1] if flags else "",
        organism=without_evidence(record.organism).rstrip("."),
        taxon=record.taxonomy_id[0] if record.taxonomy_id else "",
        gene=_gene(record),
        existence=str(record.protein_existence),
        version=str(record.sequence_update[1]) if record.sequence_update else "",
        length=length,
        checksum=checksum if kind == "CRC64" else "",
    )


def _gene(record: Any) -> str:
    """Return the first name of the first gene, else its first ordered locus, else its first reading frame."""
    for gene in record.gene_name[:1]:
        for kind in ("Name", "OrderedLocusNames", "ORFNames"):
            if found := gene.get(kind):
                return without_evidence(found if isinstance(found, str) else found[0])
    return ""
