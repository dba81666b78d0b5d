"""One token for every residue."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

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
    decode,
    encode,
)

# the token list of ESM-2's alphabet, typed from its published order
ESM2 = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def test_tokens_and_special_ids_are_those_of_esm2():
    assert list(TOKENS) == ESM2
    assert (CLS, PAD, EOS, UNK, MASK, VOCAB_SIZE) == (0, 1, 2, 3, 32, 33)


@given(st.binary(max_size=300))
def test_any_bytes_give_one_residue_token_each(residues):
    tokens = encode(residues).tokens
    assert tokens.dtype == numpy.uint8
    assert len(tokens) == len(residues)
    assert all(4 <= token <= 30 for token in tokens.tolist())


@given(st.text(alphabet="LAGVSERTIDPKQNFYMHWCXBUZO.-", max_size=200))
def test_letters_with_tokens_of_their_own_survive_encoding(residues):
    encoded = encode(residues.encode())
    assert decode(encoded.tokens) == residues
    assert encoded.substitutions == {}


@given(st.text(alphabet="LAGVSERTIDPKQNFYMHWCXBUZO", min_size=1, max_size=200))
def test_lower_case_gives_the_tokens_of_upper_case_and_is_counted(residues):
    encoded = encode(residues.lower().encode())
    assert decode(encoded.tokens) == residues
    assert encoded.substitutions == {"lower case": len(residues)}


def test_substitutions_are_counted_by_kind():
    encoded = encode(b"ACDJj*~k\xff1")
    assert decode(encoded.tokens) == "ACDXXX-KXX"
    assert encoded.substitutions == {"*": 1, "0x31": 1, "0xff": 1, "J": 2, "lower case": 2, "~": 1}


@given(st.binary(max_size=300))
def test_counts_cover_every_residue_that_changed(residues):
    encoded = encode(residues)
    changed = sum(chr(byte) != letter for byte, letter in zip(residues, decode(encoded.tokens), strict=True))
    # a lower-case j counts twice: it changes its case and becomes X
    assert sum(encoded.substitutions.values()) == changed + residues.count(b"j")


def test_standard_residues_are_twenty_and_exclude_the_ambiguous():
    assert len(set(STANDARD.tolist())) == 20
    assert AMBIGUOUS not in STANDARD
    assert decode(STANDARD) == "LAGVSERTIDPKQNFYMHWC"
