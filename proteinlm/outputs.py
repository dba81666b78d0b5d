"""Results that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proteinlm.errors import OutputError


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot make this folder ({error.strerror})") from error


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` when the block ends without an exception.

    Raises:
        OutputError: if the folder cannot be made or the file cannot be written or renamed.
    """
    _make_parent(path)
    partial = _beside(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``path`` when the block ends without an exception.

    Args:
        path: the folder to make.
        replace: take the place of an existing folder instead of refusing.

    Raises:
        OutputError: if ``path`` exists and is not to be replaced, or cannot be written.
    """
    if not replace:
        _refuse_full(path)
    _make_parent(path)
    partial = _beside(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        if not replace:
            # somebody else may have filled it meanwhile
            _refuse_full(path)
        _put_in_place(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_full(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"{path}: already exists and is not empty; name another output or remove it first")


def _put_in_place(partial: Path, path: Path) -> None:
    if not path.exists():
        os.rename(partial, path)
        return
    # a folder cannot be renamed onto a full one: move the old one aside first
    retired = path.with_name(f".{path.name}.{os.getpid()}.retired")
    os.rename(path, retired)
    os.rename(partial, path)
    shutil.rmtree(retired)
