"""Zstandard data inflated a few blocks at a time, for the library's own object returns all that it is given."""

from __future__ import annotations

from typing import Any

# a descriptor follows a magic number of four bytes
_MAGIC = b"\x28\xb5\x2f\xfd"
# sizes of the fields of a frame's header, by what its descriptor says (RFC 8878, 3.1.1.1)
_DICTIONARY_ID = (0, 1, 2, 4)
_TEXT_SIZE = (0, 2, 4, 8)
_BLOCK_HEADER = 3
# the kind of block of which only one byte is there, to be repeated
_RUN = 1
# most text of a block
_BLOCK_TEXT = 1 << 17


class ZstandardDecompressor:
    """Inflates one frame, in parts of bounded size as bz2 and lzma do; a skippable one has no text.

    Four bytes can stand for 128 KiB. So the headers of the blocks are followed, and the library gets
    no more blocks at a time than are asked for.
    """

    def __init__(self) -> None:
        import zstandard

        # files made with --long=31 need a window of 2 GiB
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame: Any = decompressor.decompressobj(write_size=_BLOCK_TEXT)
        # what the library has not got yet
        self._rest = memoryview(b"")
        # where in it the header of the next block stands, perhaps behind its end; None before that of the frame
        self._next: int | None = None
        self._is_last = False

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        """Whether there is no more text before there are more data."""
        return self._is_last or self._next is None or len(self._rest) < self._next + _BLOCK_HEADER

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the frame."""
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """Return what ``data``, and what is left of those before, add to the text, ``max_length`` bytes or a block."""
        self._rest = memoryview(b"".join([self._rest, data]) if self._rest else data)
        end = self._end_of_blocks(max(1, max_length // _BLOCK_TEXT))
        given, self._rest = self._rest[:end], self._rest[end:]
        text: bytes = self._frame.decompress(given)
        return text

    def _end_of_blocks(self, number: int) -> int:
        """Return where in the rest the next ``number`` blocks end, or as many of them as are there."""
        rest = self._rest
        place = self._end_of_header() if self._next is None else self._next
        if place is None:
            return 0
        while number and not self._is_last and place + _BLOCK_HEADER <= len(rest):
            header = int.from_bytes(rest[place : place + _BLOCK_HEADER], "little")
            self._is_last = bool(header & 1)
            place += _BLOCK_HEADER + (1 if header >> 1 & 3 == _RUN else header >> 3)
            number -= 1
        # behind the last block stands a check sum; what follows it the library does not touch
        end = len(rest) if self._is_last else min(place, len(rest))
        self._next = place - end
        return end

    def _end_of_header(self) -> int | None:
        """Return where in the rest the frame's header ends, or None where too little of it is there."""
        if len(self._rest) <= len(_MAGIC):
            return None
        if self._rest[: len(_MAGIC)] != _MAGIC:
            # a skippable frame, or what the library refuses: no block in either
            self._is_last = True
            return 0
        descriptor = self._rest[len(_MAGIC)]
        is_one_segment = bool(descriptor & 0x20)
        text_size = _TEXT_SIZE[descriptor >> 6] or int(is_one_segment)
        window = int(not is_one_segment)
        return len(_MAGIC) + 1 + window + _DICTIONARY_ID[descriptor & 3] + text_size
