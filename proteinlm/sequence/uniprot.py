"""What UniProt's two formats of entries have in common: names as its FASTA has them, and checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from proteinlm.errors import FastaError

REVIEWED, UNREVIEWED = "sp", "tr"
# text that has not come to the end of an entry after so many bytes is none
LARGEST_ENTRY = 1 << 28

_WORD = re.compile(r"[^\s|]+")
_EVIDENCE = re.compile(r" ?\{ECO:.*", re.DOTALL)
# in the name of an organism, brackets that begin otherwise hold its common name
_PART_OF_NAME = re.compile(r"(?i)(strain|isolate|sero|sub|bio|patho|geno|pheno|variety|clone|race|type|bv|sv|f\. sp)")


@dataclass(frozen=True, kw_only=True, slots=True)
class UniprotEntry:
    """One entry: what its header in UniProt's FASTA is made of, and the sequence as it stands in the file.

    ``line`` is where the entry begins, ``body_line`` where its sequence does; ``length`` and
    ``checksum`` are what the entry says of its sequence, "" where it says no CRC64.
    """

    line: int
    body_line: int
    body: bytes
    database: str  # sp or tr
    accession: str
    name: str
    protein: str
    fragment: str  # "", Fragment or Fragments
    organism: str
    taxon: str
    gene: str
    existence: str
    version: str
    length: int
    checksum: str

    @property
    def identifier(self) -> str:
        """The identifier that UniProt's FASTA has, such as ``sp|P12345|NAME``."""
        return f"{self.database}|{self.accession}|{self.name}"

    @property
    def description(self) -> str:
        """The description as UniProt's FASTA writes it, as far as the entry tells."""
        fields = {
            "OS": scientific_name(self.organism),
            "OX": self.taxon,
            "GN": self.gene,
            "PE": self.existence,
            "SV": self.version,
        }
        fragment = f" ({self.fragment})" if self.fragment else ""
        return " ".join([self.protein + fragment, *(f"{key}={value}" for key, value in fields.items() if value)])


def check_entry(entry: UniprotEntry, source: str) -> None:
    """Refuse an entry that is not what it says of itself.

    Raises:
        FastaError: if its names are no words, or its sequence has another length or check sum than it says.
    """
    from Bio.SeqUtils.CheckSum import crc64

    for name, value in (("accession", entry.accession), ("name", entry.name)):
        if not _WORD.fullmatch(value):
            refuse(source, entry.line, f"the entry has the {name} {value!r}, which is not one word")
    sequence = entry.body.replace(b"\n", b"").decode("latin-1")
    subject = f"the sequence of {entry.accession}"
    if not sequence:
        refuse(source, entry.line, f"{subject} is missing")
    if len(sequence) != entry.length:
        refuse(source, entry.line, f"{subject} has {len(sequence):,} residues where the entry says {entry.length:,}")
    found = crc64(sequence).removeprefix("CRC-")
    if entry.checksum and found != entry.checksum:
        refuse(source, entry.line, f"{subject} has the CRC64 {found} where the entry says {entry.checksum}")


def refuse(source: str, line: int, reason: str) -> NoReturn:
    """Raise the error of an entry that begins at ``line``."""
    raise FastaError(f"{source}:{line}: {reason}; the file is damaged or cut off, fetch it again")


def without_evidence(text: str) -> str:
    """Return ``text`` without the codes of evidence that follow it."""
    return _EVIDENCE.sub("", text)


def scientific_name(organism: str) -> str:
    """Return the name of an organism without the common names and synonyms in brackets after it."""
    end = 0
    while (start := organism.find(" (", end)) >= 0:
        if not _PART_OF_NAME.match(organism, start + 2):
            return organism[:start]
        end = _closing(organism, start + 1)
    return organism


def _closing(text: str, start: int) -> int:
    """Return the place after the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    return len(text)
