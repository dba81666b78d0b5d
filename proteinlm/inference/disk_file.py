"""Files for libraries that do not survive a failed write."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class DiskFile(io.RawIOBase):
    """A new file that remembers its first failed write and tells nobody, until ``check`` is called.

    HDF5 ends the process by a segmentation fault when a write fails, for a full disk as for a quota, and torch
    forgets the reason. From the failure on nothing is written any more.

    Attributes:
        error: the first failure; None so far.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.error: OSError | None = None
        self._offset = 0
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        """Say that it can be read: HDF5 reads what it has written."""
        return True

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def seekable(self) -> bool:
        """Say that it has places."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Go to a place and return it."""
        if whence == io.SEEK_CUR:
            offset += self._offset
        elif whence == io.SEEK_END:
            offset += os.fstat(self._descriptor).st_size
        self._offset = offset
        return offset

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer``, with zeros behind the end of the file: HDF5 takes for addresses what it finds there."""
        view = memoryview(buffer).cast("B")
        num_read = os.preadv(self._descriptor, [view], self._offset)
        view[num_read:] = bytes(len(view) - num_read)
        self._offset += len(view)
        return len(view)

    def write(self, data: Any, /) -> int:
        """Write all of ``data``, or remember why it could not be; return its size either way."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                num_written = os.pwrite(self._descriptor, rest, self._offset)
                self._offset += num_written
                rest = rest[num_written:]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Cut or lengthen the file; return its new size."""
        size = self._offset if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        return size

    def close(self) -> None:
        """Close the file, which on a network is where a write may fail."""
        if not self.closed:
            super().close()
            try:
                if self._descriptor >= 0:
                    os.close(self._descriptor)
            except OSError as error:
                self.error = self.error or error


@contextmanager
def disk_file(path: Path) -> Iterator[DiskFile]:
    """Yield a new file to write to.

    Raises:
        OSError: if it cannot be made, or a write failed: by the end of the block, if nobody asked before.
    """
    with DiskFile(path) as file:
        yield file
    file.check()
