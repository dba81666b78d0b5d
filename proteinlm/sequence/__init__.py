"""The room sequence: residues, tokens and the files that hold them."""

from proteinlm.sequence.alphabet import (
    AMBIGUOUS,
    CLS,
    EOS,
    MASK,
    PAD,
    STANDARD,
    TOKENS,
    UNK,
    VOCAB_SIZE,
    EncodedResidues,
    alphabet_digest,
    decode,
    encode,
)
from proteinlm.sequence.entries import read_records
from proteinlm.sequence.fasta import FastaConfig, FastaRecord, ReadingTally, accession, read_fasta
from proteinlm.sequence.screening import Screen, ScreeningConfig, ScreeningReport

__all__ = [
    "AMBIGUOUS",
    "CLS",
    "EOS",
    "MASK",
    "PAD",
    "STANDARD",
    "TOKENS",
    "UNK",
    "VOCAB_SIZE",
    "EncodedResidues",
    "FastaConfig",
    "FastaRecord",
    "ReadingTally",
    "Screen",
    "ScreeningConfig",
    "ScreeningReport",
    "accession",
    "alphabet_digest",
    "decode",
    "encode",
    "read_fasta",
    "read_records",
]
