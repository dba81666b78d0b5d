"""One file from a web server: resumed, never spliced from two versions, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from proteinlm.corpus.metalink import Checksum
from proteinlm.corpus.web_server import (
    DownloadConfig,
    NoSuchRangeError,
    PassingError,
    Patience,
    Pause,
    first_byte,
    read,
    responding,
    total_bytes,
    validator_of,
)
from proteinlm.errors import DownloadError, OutputError
from proteinlm.progress import SILENT, Progress

_PIECE = 1 << 18


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that has come: what it is, and how it came."""

    num_bytes: int
    sha256: str
    num_fetched: int  # bytes that came over the network
    num_retries: int


class Digests:
    """The sha256 of a file and the digest that its publisher gives, taken in one pass."""

    def __init__(self, algorithm: str) -> None:
        self.num_bytes = 0
        self._sha256 = hashlib.sha256()
        self._other = None if algorithm == "sha256" else hashlib.new(algorithm, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        """Take in the next piece."""
        self.num_bytes += len(piece)
        self._sha256.update(piece)
        if self._other is not None:
            self._other.update(piece)

    @property
    def sha256(self) -> str:
        """The sha256 so far, in hex."""
        return self._sha256.hexdigest()

    def compare(self, subject: str, checksum: Checksum) -> None:
        """Refuse what is not what ``checksum`` says.

        Raises:
            DownloadError: names what was found and what was expected.
        """
        if checksum.num_bytes is not None and self.num_bytes != checksum.num_bytes:
            raise DownloadError(f"{subject}: has {self.num_bytes:,} bytes where {checksum.num_bytes:,} are expected")
        found = (self._other or self._sha256).hexdigest()
        if found != checksum.digest:
            raise DownloadError(
                f"{subject}: has {checksum.algorithm} {found} where {checksum.digest} is expected: "
                "it is damaged, or of another release"
            )


def check_file(path: Path, checksum: Checksum, *, progress: Progress = SILENT) -> Transfer:
    """Return what a file is that lies there already and is what ``checksum`` says.

    Raises:
        DownloadError: if it is not, or cannot be read.
    """
    digests = Digests(checksum.algorithm)
    try:
        progress.start(f"verifying {path.name}", path.stat().st_size, "B")
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digests.update(piece)
                progress.advance(len(piece))
    except OSError as error:
        raise DownloadError(f"{path}: cannot be read ({error.strerror or error})") from error
    finally:
        progress.finish()
    digests.compare(str(path), checksum)
    return Transfer(digests.num_bytes, digests.sha256, 0, 0)


def fetch_file(
    url: str,
    path: Path,
    checksum: Checksum,
    *,
    config: DownloadConfig | None = None,
    progress: Progress = SILENT,
    pause: Pause = time.sleep,
) -> Transfer:
    """Fetch a file to ``path``, going on with ``path`` + ``.part`` where an earlier attempt left one.

    The part stays where a download fails, to be gone on with. It is gone on with only if the server
    says by ETag or date that the file is still the one it was begun with, and becomes ``path`` only
    if it is what ``checksum`` says; a part that is not is fetched once more from the beginning.

    Args:
        url: an http or https address.
        path: where to put it; the folder must exist.
        checksum: what it must be.
        config: how patient to be.
        progress: hears of bytes.
        pause: waits so many seconds.

    Raises:
        DownloadError: if the server does not give the file, or another than expected.
        OutputError: if it cannot be written, the disk is too small, or another download writes it.
    """
    with _Part(path, url) as part:
        patience = Patience(url, config or DownloadConfig(), pause, progress)
        try:
            return _Fetching(url, part, checksum, patience, progress).run((config or DownloadConfig()).timeout)
        except OSError as error:
            raise OutputError(
                f"{part.path}: cannot be written ({error.strerror or error}); what has come is kept, "
                "and the same command goes on with it"
            ) from error


class _Part:
    """The file that a download grows in, with what tells the version of the file it was begun with."""

    def __init__(self, path: Path, url: str) -> None:
        self.target = path
        self.path = path.with_name(path.name + ".part")
        self._about = path.with_name(path.name + ".part.json")
        self._url = url

    def __enter__(self) -> _Part:
        try:
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from error
        self._lock()
        return self

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise OutputError(f"{self.path}: another download is writing it") from error
        except OSError:
            # a file system without locks: two downloads at once then end with a wrong checksum
            return

    def __exit__(self, *_: object) -> None:
        # what did not fit on a full disk cannot be flushed either; the part then ends earlier
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_size == 0:
                self.path.unlink()
                self._about.unlink()

    @property
    def num_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def validator(self) -> str:
        """What the server called the version of the file that this part is of; empty if nothing."""
        try:
            about = json.loads(self._about.read_text(encoding="utf-8"))
            return str(about["validator"]) if about["url"] == self._url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def begin(self, validator: str) -> None:
        """Empty the part and remember the version that it is to become."""
        self._file.truncate(0)
        self._about.write_text(json.dumps({"url": self._url, "validator": validator}), encoding="utf-8")

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_PIECE):
            yield piece

    def append(self, piece: bytes) -> None:
        self._file.write(piece)

    def finish(self) -> None:
        """Put the part in its place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self.path, self.target)
        self._about.unlink(missing_ok=True)


class _Fetching:
    """Attempts at one file until it is whole."""

    def __init__(self, url: str, part: _Part, checksum: Checksum, patience: Patience, progress: Progress) -> None:
        self._url = url
        self._part = part
        self._checksum = checksum
        self._patience = patience
        self._progress = progress
        self._digests = Digests(checksum.algorithm)
        self._num_fetched = 0
        self._furthest = 0

    def run(self, timeout: float) -> Transfer:
        self._take_up()
        try:
            for is_last in (False, True):
                self._complete(timeout)
                try:
                    self._digests.compare(self._url, self._checksum)
                    break
                except DownloadError:
                    # a byte that went wrong on the way or on the disk: once more from the beginning
                    self._start_over("")
                    if is_last:
                        raise
            self._part.finish()
        finally:
            self._progress.finish()
        return Transfer(self._digests.num_bytes, self._digests.sha256, self._num_fetched, self._patience.num_retries)

    def _take_up(self) -> None:
        """Read what is there, so that the digests go on from it."""
        if self._part.num_bytes > (self._checksum.num_bytes or self._part.num_bytes) or not self._part.validator:
            self._part.begin("")
        for piece in self._part.pieces():
            self._digests.update(piece)
        self._furthest = self._digests.num_bytes
        self._announce()

    def _announce(self) -> None:
        task = f"downloading {self._part.target.name}"
        self._progress.start(task, self._checksum.num_bytes, "B", done=self._digests.num_bytes)

    def _start_over(self, validator: str) -> None:
        if validator != self._part.validator:
            self._furthest = 0
        self._part.begin(validator)
        self._digests = Digests(self._checksum.algorithm)
        self._progress.finish()
        self._announce()

    def _complete(self, timeout: float) -> None:
        """Make attempts until the part has all bytes."""
        while self._digests.num_bytes != self._checksum.num_bytes:
            try:
                self._attempt(timeout)
                return
            except PassingError as failure:
                if isinstance(failure, NoSuchRangeError):
                    self._start_over("")
                elif self._digests.num_bytes > self._furthest:
                    self._furthest = self._digests.num_bytes
                    self._patience.renew()
                self._patience.wait(failure)

    def _attempt(self, timeout: float) -> None:
        have, validator = self._digests.num_bytes, self._part.validator
        # with If-Range a file that has changed comes whole instead of its end only
        headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
        with responding(self._url, headers, timeout) as response:
            start, found = first_byte(response), validator_of(response)
            if start not in {0, have} or (start and found not in {"", validator}):
                self._start_over("")
                raise PassingError("the server sent another part of the file than was asked for")
            if not start:
                # the first answer, or one of a server that knows no ranges, or a file that has changed
                self._start_over(found)
            total = total_bytes(response)
            self._check_room(total)
            self._receive(response)
            if total is not None and self._digests.num_bytes < total:
                raise PassingError("the connection ended early")

    def _check_room(self, total: int | None) -> None:
        """Refuse a file of another size than expected, and one that the disk cannot hold."""
        expected = self._checksum.num_bytes
        if total is not None and expected is not None and total != expected:
            raise DownloadError(
                f"{self._url}: the server has {total:,} bytes where {expected:,} are expected; "
                "a new release may be on its way: try again later"
            )
        if (size := expected if total is None else total) is not None:
            missing, free = size - self._digests.num_bytes, shutil.disk_usage(self._part.path.parent).free
            if missing > free:
                raise OutputError(f"{self._part.path}: needs {missing:,} bytes more, and the disk has {free:,}")

    def _receive(self, response: Any) -> None:
        limit = self._checksum.num_bytes
        while piece := read(response, _PIECE):
            if limit is not None and self._digests.num_bytes + len(piece) > limit:
                self._part.begin("")
                raise DownloadError(f"{self._url}: the server sends more than the {limit:,} bytes that are expected")
            self._part.append(piece)
            self._digests.update(piece)
            self._num_fetched += len(piece)
            self._progress.advance(len(piece))
