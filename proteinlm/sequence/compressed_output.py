"""Files written plain or compressed, as the end of their name says; the same bytes in, the same bytes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast


def _gzip(file: IO[bytes]) -> Any:
    from isal import igzip

    # without name and time the same text gives the same bytes
    return igzip.IGzipFile(filename="", mode="wb", fileobj=file, mtime=0)


def _xz(file: IO[bytes]) -> Any:
    import lzma

    return lzma.LZMAFile(file, "wb")


def _bzip2(file: IO[bytes]) -> Any:
    import bz2

    return bz2.BZ2File(file, "wb")


def _zstandard(file: IO[bytes]) -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file, closefd=False)


_BY_SUFFIX: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": _gzip,
    ".xz": _xz,
    ".bz2": _bzip2,
    ".zst": _zstandard,
}


@contextmanager
def compressing(file: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Yield what to write to so that ``file`` gets it compressed by ``suffix``; it stays open.

    Any suffix but ``.gz``, ``.xz``, ``.bz2`` and ``.zst`` leaves the bytes as they are.
    """
    opener = _BY_SUFFIX.get(suffix.lower())
    if opener is None:
        yield file
        return
    with opener(file) as compressed:
        yield cast("IO[bytes]", compressed)
