"""UniProt XML, entry by entry: cut into entries here, each read by Biopython.

Biopython's own reader of whole files keeps an empty element for every entry, so its memory grows with
the file; it also refuses an entry for what is odd in its annotation.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from proteinlm.errors import FastaError
from proteinlm.sequence.uniprot import LARGEST_ENTRY, REVIEWED, UNREVIEWED, UniprotEntry, check_entry, refuse

_DATABASES = {"Swiss-Prot": REVIEWED, "TrEMBL": UNREVIEWED}
_EXISTENCE = (
    "evidence at protein level",
    "evidence at transcript level",
    "inferred from homology",
    "predicted",
    "uncertain",
)
_FRAGMENTS = {"single": "Fragment", "multiple": "Fragments"}
_END_MARK = b"</entry>"
_ENTRY = re.compile(rb"<entry[\s>]")
_SEQUENCE = re.compile(rb"<sequence\s[^>]*>\s*")
_BLANKS_AND_COMMENTS = re.compile(rb"(?:\s+|(?><!--.*?-->))*+", re.DOTALL)
# elements of annotation, nine tenths of an entry: nothing in a header comes from them
_ANNOTATION = re.compile(
    rb"<(reference|comment|feature|evidence|keyword|organismHost)\b(?:[^>]*/>|.*?</\1>)\s*", re.DOTALL
)
# UniProt's FASTA names the first gene, and Biopython keeps the last
_FURTHER_GENES = re.compile(rb"(</gene>)(?:\s*<gene\b.*?</gene>)+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Cut:
    """One entry as it was cut out of the file, and what stands before the first."""

    line: int
    prolog: bytes
    text: bytes


def read_xml(pieces: Iterable[bytes], source: str, *, skip: int = 0) -> Iterator[UniprotEntry]:
    """Yield the entries of a UniProt XML file; the arguments and errors are those of ``read_flat_file``."""
    for number, cut in enumerate(_cut_entries(pieces, source)):
        if number >= skip:
            entry = _read_entry(cut, source)
            check_entry(entry, source)
            yield entry


def _cut_entries(pieces: Iterable[bytes], source: str) -> Iterator[_Cut]:
    text = bytearray()
    line, searched = 1, 0
    prolog: bytes | None = None
    for piece in pieces:
        text += piece
        begin = 0
        while (end := text.find(_END_MARK, max(begin, searched))) >= 0:
            end += len(_END_MARK)
            cut = _cut_of(bytes(text[begin:end]), line, prolog, source)
            yield cut
            prolog = cut.prolog
            line += text.count(b"\n", begin, end)
            begin = searched = end
        del text[:begin]
        searched = max(0, len(text) - len(_END_MARK))
        if len(text) > LARGEST_ENTRY:
            refuse(source, line, f"no entry ends within {LARGEST_ENTRY:,} bytes")
    _check_end(bytes(text), line, prolog, source)


def _cut_of(text: bytes, line: int, prolog: bytes | None, source: str) -> _Cut:
    """Return the entry that ``text`` ends with; ``prolog`` is None at the first."""
    starts = [found.start() for found in _ENTRY.finditer(text)]
    if not starts:
        refuse(source, line, "'</entry>' ends no entry")
    before, entry = text[: starts[0]], text[starts[0] :]
    line += before.count(b"\n")
    if len(starts) > 1:
        refuse(source, line, "the entry has no end before the next one")
    if prolog is not None and not _BLANKS_AND_COMMENTS.fullmatch(before):
        refuse(source, line, f"{before.strip()[:40].decode('latin-1')!r} stands between entries")
    return _Cut(line, before.lstrip() if prolog is None else prolog, entry)


def _check_end(text: bytes, line: int, prolog: bytes | None, source: str) -> None:
    """Refuse a file that does not end as it must, ``text`` being what follows the last entry."""
    from xml.etree import ElementTree

    if found := _ENTRY.search(text):
        refuse(source, line + text[: found.start()].count(b"\n"), "the entry has no end")
    if prolog is None:
        raise FastaError(f"{source}: holds no entry; expected elements '<entry>'")
    try:
        ElementTree.fromstring(prolog + text)
    except ElementTree.ParseError:
        refuse(source, line + text.count(b"\n"), "the file does not end with '</uniprot>'")


def _read_entry(cut: _Cut, source: str) -> UniprotEntry:
    from xml.parsers import expat

    from Bio.SeqIO.UniprotIO import UniprotIterator

    end = b"</uniprot>"
    needed = _FURTHER_GENES.sub(rb"\1", _ANNOTATION.sub(b"", cut.text))
    try:
        # all of it, or what is left out could hide the end of one entry and the beginning of the next
        expat.ParserCreate().Parse(cut.prolog + cut.text + end, True)
        # Biopython takes the last
        if (number := len(_SEQUENCE.findall(needed))) != 1:
            raise ValueError(f"it has {number} sequences")
        records = list(UniprotIterator(io.BytesIO(cut.prolog + needed + end)))
        return _entry_of(records[0], cut)
    except Exception as error:  # Biopython meets damage with ParseError, ValueError, KeyError, TypeError and more
        raise FastaError(
            f"{source}:{cut.line}: the entry is no entry of UniProt ({str(error) or type(error).__name__}); "
            "mend it or fetch the file again"
        ) from error


def _entry_of(record: Any, cut: _Cut) -> UniprotEntry:
    found: dict[str, Any] = record.annotations
    if found.get("dataset") not in _DATABASES:
        raise ValueError(f"its data set is {found.get('dataset')!r}; expected Swiss-Prot or TrEMBL")
    start = [match.end() for match in _SEQUENCE.finditer(cut.text)][-1]
    body = cut.text[start : cut.text.index(b"</sequence>", start)].rstrip()
    if bytes(record.seq) != b"".join(body.split()):
        raise ValueError("its sequence is not set as it should be")
    existence = found.get("proteinExistence", [""])[0]
    taxa = [name for name in record.dbxrefs if name.startswith("NCBI Taxonomy:")]
    return UniprotEntry(
        line=cut.line,
        body_line=cut.line + cut.text[:start].count(b"\n"),
        body=b"\n".join(b"".join(text.split()) for text in body.splitlines()),
        database=_DATABASES[found["dataset"]],
        accession=found["accessions"][0],
        name=record.name,
        protein=record.description,
        fragment=_FRAGMENTS.get(found.get("sequence_fragment", ""), ""),
        organism=found.get("organism", ""),
        taxon=taxa[0].partition(":")[2] if taxa else "",
        gene=_gene(found),
        existence=str(_EXISTENCE.index(existence) + 1) if existence in _EXISTENCE else "",
        version=str(found["sequence_version"]),
        length=found["sequence_length"],
        checksum=found["sequence_checksum"],
    )


def _gene(found: dict[str, Any]) -> str:
    """Return the first name of the gene, else its first ordered locus, else its first reading frame."""
    names = [found["gene_name_primary"]] if "gene_name_primary" in found else []
    names += found.get("gene_name_ordered locus", []) + found.get("gene_name_ORF", [])
    return names[0] if names else ""
