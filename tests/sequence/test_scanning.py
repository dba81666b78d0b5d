"""The compiled loop finds the same whether it translates 64 bytes at a time or one."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.sequence import encode
from proteinlm.sequence.record_blocks import FRAGMENT, NUCLEOTIDES
from proteinlm.sequence.scanning import NOT_PLAIN, is_wide, scan_text

MORSELS = (
    *("\n", "\n", "\n>a\n", "\n>sp|P1|N (Fragment) x\n", ">", "MKLV" * 16, "MK", "ACGT" * 10, "XBUZO", "J", "m"),
    *("*", "\n>\n", "\n> x\n", "\n>é\n", "\n>a\tb\n", "\n>" + "n" * 61, " (Fragment", "\n>a|b (Fragments)\n"),
)


def scanned(text: bytes, wide: bool, capacity: int = 1000):
    size = len(text)
    arrays = (
        *(np.zeros(size, np.uint8), np.zeros(size, np.uint8), np.zeros((capacity + 1, 3), np.int64)),
        *(np.zeros((capacity, 3), np.int64), np.zeros((capacity, 4), np.uint64), np.zeros(capacity, np.uint8)),
    )
    number, num_lines = scan_text(np.frombuffer(text, np.uint8), wide, *arrays)
    tokens, identifiers, places, counts, hashes, marks = arrays
    if number >= 0:
        tokens, identifiers = tokens[: places[number, 1]], identifiers[: places[number, 2]]
    plain = marks[:number] != NOT_PLAIN
    return (
        *(number, num_lines, tokens.tobytes(), identifiers.tobytes(), places[: number + 1].tolist()),
        *(counts[:number, 0].tolist(), counts[:number][plain].tolist(), hashes[:number][plain].tolist()),
        marks[:number].tolist(),
    )


@pytest.mark.skipif(not is_wide(), reason="needs a processor with AVX2")
@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from(MORSELS), max_size=40).map("".join))
def test_wide_and_narrow_loops_agree(text):
    whole = f">first{text}\n".encode()
    assert scanned(whole, True) == scanned(whole, False)


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.skipif(not is_wide(), reason="no AVX2"))])
def test_every_byte_has_the_token_of_encode_or_makes_its_record_odd(wide):
    for byte in set(range(256)) - set(b"\n>"):
        residues = b"MKLV" * 20 + bytes([byte]) + b"A" * 100
        found = scanned(b">a\n" + residues + b"\n>b\nMK\n", wide)
        encoded = encode(residues)
        is_plain = not encoded.substitutions and byte not in b"-."
        assert (found[-1][0] != NOT_PLAIN) == is_plain, byte
        assert found[2] == (encoded.tokens.tobytes() if is_plain else b"") + encode(b"MK").tokens.tobytes()


def test_marks_and_lines_of_plain_and_odd_records():
    text = b">a (Fragment)\nMK\nLV\n\n>b\nMK*\n>c\n" + b"ACGT" * 8 + b"\n>(Fragment\nM\n"
    found = scanned(text, is_wide())
    assert found[-1] == [FRAGMENT, NOT_PLAIN, NUCLEOTIDES, 0]
    assert found[5] == [0, 4, 6, 8]
    assert found[1] == 10


def test_a_lack_of_room_is_told():
    assert scanned(b">\n" * 10, False, capacity=9)[0] == -1


PORTABLE = """
from proteinlm.sequence.scanning import is_wide
from proteinlm.sequence.source_blocks import read_source_blocks
import numpy, sys
assert not is_wide()
(first, *_) = read_source_blocks([sys.argv[1]])
print(len(first), int(first.digests[:, 0].sum()), int(first.num_ambiguous.sum()))
"""


def test_processors_without_the_lookup_read_the_same(sample):
    from proteinlm.sequence.source_blocks import read_source_blocks

    path = sample / "uniprotkb_sample.fasta.xz"
    first, *_ = read_source_blocks([path])
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-c", PORTABLE, str(path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert found == [str(len(first)), str(int(first.digests[:, 0].sum())), str(int(first.num_ambiguous.sum()))]
