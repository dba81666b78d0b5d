"""Bytes of a file or of standard input, decompressed by what they are and not by their name."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import xxhash

from proteinlm.errors import FastaError
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.standard_input import standard_input
from proteinlm.sequence.timings import Timings, measured

STDIN = "-"
# fits a core's cache
PIECE = 1 << 16
# bytes of compressed data, and of text that they may add at once however far they expand: large, as a
# thread waits for the interpreter's lock after each, and the text not larger than a core's cache keeps
_LARGE_PIECE = 1 << 22
_MOST_TEXT = 1 << 21
# where a mark is looked for before a piece ends: some records
_NEAR = 1 << 13
_NO_PADDING = re.compile(rb"[^\0]")


class Decompressor(Protocol):
    """What bz2, lzma, isal and our zstandard have in common."""

    @property
    def eof(self) -> bool:
        """Whether the member has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether there is no more text before there are more data."""

    @property
    def unused_data(self) -> bytes:
        """What follows the end of the member."""

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """Return what ``data``, and what is left of those before, add to the text, up to ``max_length`` bytes."""


class SourceDigest:
    """The size in bytes and the digests of a source as it was read, compressed or not.

    A sha256 costs about as much as all of the reading, so it can be left out.

    Attributes:
        so_far: the size and the ``xxh3_128`` of what was read, which belong together also where another
            thread reads on.
    """

    def __init__(self, *, with_sha256: bool = True) -> None:
        self._xxh3_128 = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if with_sha256 else None
        self.so_far = 0, self._xxh3_128.hexdigest()

    def update(self, piece: bytes) -> None:
        """Take in the next piece."""
        self._xxh3_128.update(piece)
        if self._sha256 is not None:
            self._sha256.update(piece)
        self.so_far = self.num_bytes + len(piece), self._xxh3_128.hexdigest()

    @property
    def num_bytes(self) -> int:
        """The size so far."""
        return self.so_far[0]

    @property
    def xxh3_128(self) -> str:
        """The XXH3 so far, 32 hex digits, as the tool ``xxhsum -H2`` prints it."""
        return self.so_far[1]

    @property
    def sha256(self) -> str:
        """The sha256 so far, in hex; empty where it was not asked for."""
        return self._sha256.hexdigest() if self._sha256 is not None else ""


@dataclass(frozen=True, slots=True)
class _Compression:
    name: str
    magics: tuple[bytes, ...]
    open: Callable[[], Decompressor]

    def begins(self, member: bytes) -> bool:
        """Say whether ``member``, perhaps cut short, can be the beginning of such data."""
        return member.startswith(self.magics) or any(magic.startswith(member) for magic in self.magics)


def _gzip() -> Decompressor:
    from isal import igzip_lib

    decompressor: Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return decompressor


def _xz() -> Decompressor:
    import lzma

    return lzma.LZMADecompressor()


def _bzip2() -> Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _zstandard() -> Decompressor:
    from proteinlm.sequence.zstandard_blocks import ZstandardDecompressor

    return ZstandardDecompressor()


# frames for others than the reader of text, which pzstd begins with
_SKIPPABLE = [bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)]
_COMPRESSIONS = (
    _Compression("gzip", (b"\x1f\x8b",), _gzip),
    _Compression("xz", (b"\xfd7zXZ\x00",), _xz),
    _Compression("bzip2", (b"BZh",), _bzip2),
    _Compression("zstandard", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), _zstandard),
)
_LONGEST_MAGIC = max(len(magic) for kind in _COMPRESSIONS for magic in kind.magics)


def compression_of(opening: bytes) -> str | None:
    """Return the name of the compression that ``opening`` begins, or None."""
    kind = _kind_of(opening)
    return None if kind is None else kind.name


def _kind_of(opening: bytes) -> _Compression | None:
    return next((kind for kind in _COMPRESSIONS if opening.startswith(kind.magics)), None)


def is_plain_file(path: Path | str) -> bool:
    """Say whether ``path`` is a file that is not compressed; one that cannot be opened is none."""
    if str(path) == STDIN or not os.path.isfile(path):
        return False
    try:
        with Path(path).open("rb") as file:
            return compression_of(file.read(_LONGEST_MAGIC)) is None
    except OSError:
        return False


def inflated_opening(opening: bytes, size: int) -> bytes:
    """Return the text that the first bytes of a source hold, as far as they go, but not much more than ``size``."""
    kind = _kind_of(opening)
    if kind is None:
        return opening
    text = b""
    # the rest of the source is missing, and damage is for the reader to name
    with suppress(FastaError):
        for part in _inflate(iter([opening]), kind, "", None):
            text += part
            if len(text) >= size:
                break
    return text


def source_name(path: Path | str) -> str:
    """Return how messages call ``path``."""
    return "standard input" if str(path) == STDIN else str(path)


def name_in_folder(path: Path | str) -> str:
    """Return the name of ``path`` without its folder; bytes in it that are no UTF-8 are escaped, for JSON has none."""
    return Path(source_name(path)).name.encode("utf-8", "backslashreplace").decode()


def can_be_read_again(path: Path | str) -> bool:
    """Say whether the same bytes come once more: not of standard input, a pipe or a terminal."""
    if str(path) == STDIN:
        return False
    try:
        mode = Path(path).stat().st_mode
    except OSError:  # who reads it says what is wrong
        return True
    return not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode))


def read_decompressed(
    path: Path | str,
    *,
    digest: SourceDigest | None = None,
    progress: Progress = SILENT,
    plain_piece: int = PIECE,
    plain_mark: bytes = b"",
    timings: Timings | None = None,
) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces, decompressed if they are gzip, xz, bzip2 or zstandard.

    Files of several members (bgzip, joined files) are read to their end.

    Args:
        path: a file, or ``-`` for standard input.
        digest: takes in the bytes as they lie on disk.
        progress: hears of bytes as they lie on disk.
        plain_piece: size in bytes of the pieces of a file that is not compressed, but for the first.
        plain_mark: such pieces of a regular file, but for the first, end before the last byte of these
            bytes where they stand near, so that nobody has to cut them there.
        timings: gets the stages ``read``, ``hash`` and ``inflate``.

    Raises:
        FastaError: if the file cannot be opened or its compressed data are cut off or damaged, or
            are followed by bytes that are no further member.
    """
    pieces = _raw(path, digest, progress, plain_piece, plain_mark, timings)
    first = next(pieces, b"")
    kind = _kind_of(first)
    if kind is not None:
        yield from _inflate(_chain(first, pieces), kind, source_name(path), timings)
    elif first:
        yield from _chain(first, pieces)


class PieceReader(io.RawIOBase):
    """Pieces of bytes as a file, for libraries that read files."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` from one piece and return how many bytes that were, 0 at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _chain(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from others


def _raw(
    path: Path | str,
    digest: SourceDigest | None,
    progress: Progress,
    plain_piece: int,
    plain_mark: bytes,
    timings: Timings | None,
) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            for piece in _pieces(file, plain_piece, plain_mark, timings):
                if digest is not None:
                    with measured(timings, "hash"):
                        digest.update(piece)
                progress.advance(len(piece))
                yield piece
    except FileNotFoundError as error:
        raise FastaError(f"{source_name(path)}: no such file") from error
    except OSError as error:
        raise FastaError(f"{source_name(path)}: cannot be read ({error.strerror or error})") from error


def _pieces(file: IO[bytes], plain_piece: int, plain_mark: bytes, timings: Timings | None) -> Iterator[bytes]:
    with measured(timings, "read"):
        piece = file.read(PIECE)
    # the first piece tells whether there is something to inflate
    is_compressed = compression_of(piece) is not None
    if plain_mark and not is_compressed and _is_regular(file):
        yield piece
        yield from _up_to_marks(file.fileno(), len(piece), plain_piece, plain_mark, timings)
        return
    size = _LARGE_PIECE if is_compressed else plain_piece
    while piece:
        yield piece
        with measured(timings, "read"):
            piece = file.read(size)


def _up_to_marks(descriptor: int, offset: int, size: int, mark: bytes, timings: Timings | None) -> Iterator[bytes]:
    """Yield what follows ``offset`` in pieces that end before the last byte of a mark, where one stands near."""
    while True:
        with measured(timings, "read"):
            length = size
            near = os.pread(descriptor, _NEAR, offset + size - _NEAR) if size > _NEAR else b""
            if len(near) == _NEAR and (found := near.rfind(mark)) >= 0:
                length += found + len(mark) - 1 - _NEAR
            piece = os.pread(descriptor, length, offset)
        if not piece:
            return
        offset += len(piece)
        yield piece


def _is_regular(file: IO[bytes]) -> bool:
    return isinstance(file, io.BufferedReader) and stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _open(path: Path | str) -> Any:
    if str(path) == STDIN:
        return nullcontext(standard_input())
    return Path(path).open("rb")


def _inflate(pieces: Iterator[bytes], kind: _Compression, source: str, timings: Timings | None) -> Iterator[bytes]:
    decompressor = kind.open()
    is_between_members = False
    # what follows a member is copied, so where members are small not much is given at once
    size = PIECE
    for piece in pieces:
        place = 0
        while place < len(piece):
            if is_between_members:
                place = _after_padding(piece, place)
                if not kind.begins(piece[place : place + _LONGEST_MAGIC]):
                    raise FastaError(f"{source}: bytes after the end of the {kind.name} data are no further member")
                if place == len(piece):
                    break
            part = memoryview(piece)[place : place + size]
            yield from _texts(decompressor, part, kind, source, timings)
            place += len(part)
            size = min(2 * size, _LARGE_PIECE)
            is_between_members = decompressor.eof
            if is_between_members:
                place -= len(decompressor.unused_data)
                decompressor, size = kind.open(), PIECE
    if not is_between_members:
        raise FastaError(f"{source}: the {kind.name} data end before their end mark; the file is cut off")


def _after_padding(piece: bytes, place: int) -> int:
    # zeros between and after members are padding
    found = _NO_PADDING.search(piece, place)
    return len(piece) if found is None else found.start()


def _texts(
    decompressor: Decompressor, part: memoryview, kind: _Compression, source: str, timings: Timings | None
) -> Iterator[bytes]:
    data: bytes | memoryview = part
    while True:
        with measured(timings, "inflate"):
            text = _decompress(decompressor, data, kind, source)
        if text:
            yield text
        if decompressor.eof or decompressor.needs_input:
            return
        data = b""


def _decompress(decompressor: Decompressor, data: bytes | memoryview, kind: _Compression, source: str) -> bytes:
    try:
        return decompressor.decompress(data, _MOST_TEXT)
    except MemoryError:
        raise
    except Exception as error:  # each library has an exception of its own
        raise FastaError(f"{source}: the {kind.name} data are damaged ({error})") from error
