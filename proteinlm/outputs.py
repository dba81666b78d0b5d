"""Results that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proteinlm.errors import OutputError


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` when the block ends without an exception.

    A symbolic link stays, and what it points to is written. What processes that have died left
    beside ``path`` is removed.

    Raises:
        OutputError: if the folder cannot be made or the file cannot be written or renamed.
    """
    place = resolved(path)
    with parents_made(place):
        _remove_left(place, "partial")
        partial = _beside(place, "partial")
        try:
            yield partial
            os.replace(partial, place)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            # what stays here is removed by the next writer, and hides nothing
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``path`` when the block ends without an exception.

    Links and what dead processes left are treated as in ``file_beside``.

    Args:
        path: the folder to make.
        replace: take the place of an existing folder instead of refusing.

    Raises:
        OutputError: if ``path`` exists and is not to be replaced, or cannot be written.
    """
    place = resolved(path)
    if not replace:
        refuse_full(path)
    with parents_made(place):
        _remove_left(place, "partial")
        partial = _beside(place, "partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            yield partial
            if not replace:
                # somebody else may have filled it meanwhile
                refuse_full(path)
            put_in_place(partial, place)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _remove_left(place, "retired")


def resolved(path: Path) -> Path:
    """Return where ``path`` leads through symbolic links.

    Raises:
        OutputError: if that cannot be found out.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:  # the working directory is gone
        raise OutputError(f"{path}: cannot be found ({error.strerror})") from error


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}.{kind}")


@contextmanager
def parents_made(place: Path) -> Iterator[None]:
    """Make the folder that ``place`` is in; if the block fails, remove the folders made for it.

    Raises:
        OutputError: if it cannot be made.
    """
    # os.path says no where a Path raises: of folders that may not be looked into, or of names too long
    made = [folder for folder in place.parents if not os.path.exists(folder)]
    try:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{place.parent}: cannot make this folder ({error.strerror})") from error
        yield
    except BaseException:
        for folder in made:
            # it stays if somebody else has put something there
            with suppress(OSError):
                folder.rmdir()
        raise


def _remove_left(place: Path, kind: str) -> None:
    """Remove what earlier writers of ``place`` left behind when they were killed."""
    name = re.compile(rf"\.{re.escape(place.name)}\.([0-9]+)\.{kind}")
    # whoever may not list or tidy the folder can still write his own result
    with suppress(OSError):
        for entry in place.parent.iterdir():
            found = name.fullmatch(entry.name)
            if found is None or _is_alive(int(found[1])):
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def refuse_full(path: Path) -> None:
    """Refuse an output that exists and is not an empty folder.

    Raises:
        OutputError: says so, or that it cannot be found out.
    """
    try:
        is_full = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    if is_full:
        raise OutputError(f"{path}: already exists and is not empty; name another output or remove it first")


def put_in_place(partial: Path, place: Path) -> None:
    """Rename a folder to ``place``, and remove the folder that was there."""
    if not place.is_dir():
        os.rename(partial, place)
        return
    if not any(place.iterdir()):
        _fill_or_replace(partial, place)
        return
    # a folder cannot be renamed onto a full one: move the old one aside first
    retired = _beside(place, "retired")
    os.rename(place, retired)
    try:
        os.rename(partial, place)
    except OSError:
        os.rename(retired, place)
        raise
    shutil.rmtree(retired)


def _fill_or_replace(partial: Path, empty: Path) -> None:
    if empty != Path.cwd():
        # one step where the system replaces an empty folder, as POSIX does
        os.rename(partial, empty)
        return
    # a shell that stands in a folder which is replaced sees nothing of the new one
    for entry in sorted(partial.iterdir()):
        os.rename(entry, empty / entry.name)
