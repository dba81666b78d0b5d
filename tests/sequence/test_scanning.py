"""The compiled loop finds the same whether it translates 64 bytes at a time or one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpus.token_account import TokenAccount
from proteinlm.sequence import encode
from proteinlm.sequence.record_blocks import FRAGMENT, NUCLEOTIDES
from proteinlm.sequence.scanning import NOT_PLAIN, scan_text
from proteinlm.sequence.token_counts import count_tokens
from proteinlm.sequence.usual_text import is_usual
from proteinlm.sequence.wide_bytes import has_feature, is_wide

MORSELS = (
    *("\n", "\n", "\n>a\n", "\n>sp|P1|N (Fragment) x\n", ">", "MKLV" * 16, "MK", "ACGT" * 10, "XBUZO", "J", "m"),
    *("mkxv" * 20, "M*\n*", "**\n", "j", "MKLVX" * 12 + "\n", "MK" * 31 + "\n", "A" * 63 + "\n", "C" * 64 + "\n"),
    *("*", "\n>\n", "\n> x\n", "\n>é\n", "\n>a\tb\n", "\n>" + "n" * 61, " (Fragment", "\n>a|b (Fragments)\n"),
)
WIDTHS = pytest.mark.parametrize(
    "wide", [False, pytest.param(True, marks=pytest.mark.skipif(not is_wide(), reason="no AVX2"))]
)


def scanned(text: bytes, wide: bool, capacity: int = 1000):
    size = len(text)
    tokens, identifiers, marks = np.zeros(size, np.uint8), np.zeros(size + 64, np.uint8), np.zeros(capacity, np.uint8)
    places, counts = np.zeros((3, capacity + 1), np.int64), np.zeros((4, capacity), np.int64)
    digests = np.zeros((2, capacity, 2), np.uint64)
    filled = (tokens, identifiers, places, counts, digests, marks)
    number, *totals = scan_text(np.frombuffer(text, np.uint8), wide, *filled)
    if number >= 0:
        tokens, identifiers = tokens[: places[1, number]], identifiers[: places[2, number]]
        assert totals[1] == np.count_nonzero(marks[:number] & NOT_PLAIN)
        del totals[1]
    plain = marks[:number] != NOT_PLAIN
    return (
        *(number, totals, tokens.tobytes(), identifiers.tobytes(), places[:, : number + 1].tolist()),
        *(counts[0, :number].tolist(), counts[:, :number].T[plain].tolist(), digests[:, :number][:, plain].tolist()),
        marks[:number].tolist(),
    )


@pytest.mark.skipif(not is_wide(), reason="needs a processor with AVX2")
@settings(deadline=None)  # the first call compiles
@given(st.lists(st.sampled_from(MORSELS), max_size=40).map("".join))
def test_wide_and_narrow_loops_agree(text):
    whole = f">first{text}\n".encode()
    assert scanned(whole, True) == scanned(whole, False)


# at and around what fits into one step, and the widths that programs write
LINE_WIDTHS = [1, 2, 59, 60, 61, 62, 63, 64, 65, 66, 80, 127, 128, 129]
# lines in the midst of others of one width, which must not be taken for one of them
ODD_LINES = [b"", b"MK*", b"*", b"MJK", b"J", b"?MK", b"MK?", b"mkXB", b"M" * 58, b"M" * 63, b"M" * 70, b">MK"]


@pytest.mark.skipif(not is_wide(), reason="needs a processor with AVX2")
@pytest.mark.parametrize("width", LINE_WIDTHS)
def test_lines_of_one_width_are_read_alike_whatever_stands_between_them(width):
    random = np.random.default_rng(width)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY" * 9 + b"xXBz", np.uint8)
    for odd in [*ODD_LINES, None]:
        for place in range(4):
            lines = [random.choice(letters, width).tobytes() for _ in range(4)]
            if odd is not None:
                lines.insert(place, odd[:width])
                # as long as the others, and not one of them
                lines.insert(place, (odd + b"M" * width)[:width])
            other = int(random.choice(LINE_WIDTHS))
            last = [random.choice(letters, size).tobytes() for size in (other, other, int(random.integers(1, 70)))]
            for end in (b"", b"\n>c\n" + b"L" * 100):
                text = b">a\n" + b"\n".join(lines) + b"\n>b x\n" + b"\n".join(last) + end + b"\n"
                assert scanned(text, True) == scanned(text, False), (odd, place, end)


@WIDTHS
def test_every_byte_has_the_token_of_encode_or_makes_its_record_odd(wide):
    for byte in set(range(256)) - set(b"\n>"):
        residues = b"MKLV" * 20 + bytes([byte]) + b"A" * 100
        found = scanned(b">a\n" + residues + b"\n>b\nMK\n", wide)
        encoded = encode(residues)
        is_plain = encoded.substitutions.keys() <= {"lower case"} and byte not in b"-."
        assert (found[-1][0] != NOT_PLAIN) == is_plain, byte
        assert found[1][2] == (encoded.substitutions.get("lower case", 0) if is_plain else 0)
        assert found[2] == (encoded.tokens.tobytes() if is_plain else b"") + encode(b"MK").tokens.tobytes()


def test_marks_and_lines_of_plain_and_odd_records():
    text = b">a (Fragment)\nMK\nLV\n\n>b\nMK-\n>c\n" + b"ACGT" * 8 + b"\n>(Fragment\nM\n"
    found = scanned(text, is_wide())
    assert found[-1] == [FRAGMENT, NOT_PLAIN, NUCLEOTIDES, 0]
    assert found[5] == [0, 4, 6, 8]
    assert found[1] == [10, 0, 0]


@WIDTHS
def test_stops_at_the_end_are_counted_and_stops_inside_are_odd(wide):
    for residues in (b"MK", b"", b"M" * 63, b"M" * 64, b"M" * 200, b"M" * 60 + b"\n" + b"K" * 60):
        for end, num_stops in ((b"*\n", 1), (b"**\n", 2), (b"\n*\n", 1), (b"*\n\n*\n", 2), (b"**\n" * 40, 80)):
            found = scanned(b">a\n" + residues + end + b">b\nLV\n", wide)
            num_lines = 3 + residues.count(b"\n") + end.count(b"\n")
            assert found[1] == [num_lines, num_stops, 0]
            assert found[2] == encode(residues.replace(b"\n", b"") + b"LV").tokens.tobytes()
            assert found[-1] == [0, 0]
            for inside in (end + b"M\n", end + b"m\n", end + b"-\n", end + b">\n"[1:] + b"MK*\n"):
                found = scanned(b">a\n" + residues + inside + b">b\nLV*\n", wide)
                assert found[1] == [num_lines + inside.count(b"\n") - end.count(b"\n"), 1, 0]
                assert found[-1] == [NOT_PLAIN, 0]


@WIDTHS
def test_lower_case_is_counted_in_plain_records_only(wide):
    text = b">a\n" + b"mkLV" * 40 + b"\nxBuz\n>b\nmk?\n>c\n" + b"acgtN" * 9 + b"*\n"
    found = scanned(text, wide)
    assert found[1] == [7, 1, 83 + 36]
    assert found[-1] == [0, NOT_PLAIN, NUCLEOTIDES]
    assert [counts[1:] for counts in found[6]] == [[163, 4, 83], [45, 0, 36]]


def test_a_lack_of_room_is_told():
    assert scanned(b">\n" * 10, False, capacity=9)[0] == -1


@pytest.mark.parametrize("text", [b">abcd", b">a\nMKV", b">a\nMK*", b">a\nMK?", b">"])
def test_no_byte_behind_a_text_is_read_which_one_without_a_last_line_end_would_lead_to(text):
    with pytest.raises(ValueError, match="ends with a line feed"):
        scanned(text, is_wide())


ELSEWHERE = """
import sys
from tests.sequence.test_scanning import all_there_is, counted_and_hashed, many_records
from proteinlm.sequence.wide_bytes import has_feature
assert [has_feature(name) for name in ("avx2", "avx512vbmi")] == [sys.argv[1] == "True", False]
print(all_there_is(many_records()), counted_and_hashed(many_records()))
"""


def many_records() -> bytes:
    """Return records of every size up to 400, in lines of 60, some odd."""
    random = np.random.default_rng(1)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY" * 4 + b"acgtXBUZO", np.uint8)
    parts = []
    for number in range(400):
        residues = random.choice(letters, number).tobytes() + b"*-?"[: random.integers(3)]
        lines = [residues[start : start + 60] for start in range(0, len(residues), 60)]
        parts += [b">sp|P%d|%s x (Fragment)" % (number, b"N" * random.integers(80)), *lines]
    return b"\n".join(parts) + b"\n"


def all_there_is(text: bytes) -> str:
    return hashlib.sha256(repr(scanned(text, is_wide())).encode()).hexdigest()


def counted_and_hashed(text: bytes) -> str:
    tokens = np.frombuffer(text, np.uint8) % 32
    account = TokenAccount(2048)
    account.add(tokens)
    assert account.counts.tolist() == count_tokens(tokens).tolist() == np.bincount(tokens, minlength=33).tolist()
    usual = [is_usual(text), is_usual(text + b"\r"), is_usual(b"\0" + text)]
    return f"{account.digest} {usual}"


# as on a plain processor .ci/run runs all tests of compiled loops
@pytest.mark.parametrize(
    "features", [pytest.param("", marks=pytest.mark.slow), "+avx2,+popcnt,+bmi"], ids=["plain", "AVX2"]
)
def test_lesser_processors_find_the_same(features):
    if features and not has_feature("avx2"):
        pytest.skip("needs a processor with AVX2")
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", ELSEWHERE, str(bool(features))]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.strip() == f"{all_there_is(many_records())} {counted_and_hashed(many_records())}"
