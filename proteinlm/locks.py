"""One process at a time writes an output: a locked file in it, however that process ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from proteinlm.errors import InUseError, OutputError

LOCK_FILE = "lock"


@contextmanager
def locked(folder: Path, output: Path, work: str) -> Iterator[None]:
    """Hold a lock in a folder, which is made if it is not there, for as long as the block lasts.

    Args:
        folder: where the lock lies.
        output: what is being written, as the user knows it.
        work: what is done to it, such as "trained".

    Raises:
        InUseError: if another process holds the lock.
        OutputError: if it cannot be held here.
    """
    path = folder / LOCK_FILE
    with _held(path, output, work) as file:
        _sign(file, folder)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _sign(file: IO[str], folder: Path) -> None:
    """Write into the lock who holds it."""
    try:
        file.truncate(0)
        # past the buffer, which would try once more when the file is closed
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _held(path: Path, output: Path, work: str) -> IO[str]:
    """Return the lock, held until it is closed or this process ends, however it ends."""
    while True:
        try:
            path.parent.mkdir(exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError as error:  # its holder has removed the folder meanwhile
            if path.parent.parent.is_dir():
                continue
            raise OutputError(f"{path.parent}: cannot be made ({error.strerror})") from error
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be written ({error.strerror or error})") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise InUseError(f"{output}: is being {work} by {holder}; wait for it or name another output") from error
        except OSError as error:
            file.close()
            raise OutputError(f"{path}: cannot be locked ({error.strerror or error})") from error
        with ExitStack() as stack:
            stack.enter_context(file)
            if _is_same_file(file, path):
                stack.pop_all()
                return file


def _is_same_file(file: IO[str], path: Path) -> bool:
    """Say whether the file that was opened is the one that has the name: its holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror or error})") from error
