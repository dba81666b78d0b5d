"""A byte that needs care is found wherever it stands, and no other."""

from __future__ import annotations

import pytest

from proteinlm.sequence.usual_text import is_usual

# around steps of 64 and of 4,096
SIZES = [1, 63, 64, 65, 4095, 4096, 4097, 9000]


@pytest.mark.parametrize("size", SIZES)
def test_bytes_that_need_care_are_found_everywhere(size):
    text = bytes(set(range(256)) - {*b"\0\r\xef"}) * 40
    assert is_usual(text[:size])
    for byte in b"\0\r\xef":
        for place in {0, size // 2, size - 1}:
            assert not is_usual(text[:place] + bytes([byte]) + text[place + 1 : size]), (byte, place)


def test_an_empty_text_is_usual():
    assert is_usual(b"")
