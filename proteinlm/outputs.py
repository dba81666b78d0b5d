"""Results that are either whole or not there: written beside their place, then renamed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from proteinlm.errors import OutputError, ProteinLMError

# how libraries write the system's number of an error into their own: Rust's, and HDF5's
_NUMBER = re.compile(r"(?:os error|errno =) (\d+)")
# what torch says of a file that it could not write, without saying why
_CUT_SHORT = re.compile(r"unexpected pos|PytorchStreamWriter|iostream error|Parent directory .* does not exist")
# what is written to ask a disk why it has refused something
_PROBE_BYTES = 1 << 22


@contextmanager
def writing(path: Path, *places: Path) -> Iterator[None]:
    """Turn what goes wrong in the block, while ``path`` is written, into one error that names it and the reason.

    Libraries hide errors of the system in their own. An ``OSError`` of another file, such as one
    that is read in the block, stays what it is.

    Args:
        path: a file or a folder, as the user knows it.
        places: where else the block writes what becomes ``path``.

    Raises:
        OutputError: if the system refuses.
    """
    try:
        yield
    except ProteinLMError:
        raise
    except Exception as error:
        reason = None if _is_of_another_file(error, (path, *places)) else _reason(error, (places or (path,))[-1])
        if reason is None:
            raise
        raise OutputError(f"{path}: cannot be written ({reason})") from error


def _is_of_another_file(error: Exception, places: tuple[Path, ...]) -> bool:
    name = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return isinstance(name, str | os.PathLike) and not any(Path(name).is_relative_to(place) for place in places)


def _reason(error: BaseException, place: Path) -> str | None:
    """Return what the system said; None if the error is not the system's."""
    link: BaseException | None = error
    while link is not None:
        number = link.errno if isinstance(link, OSError) else None
        if number is None and (found := _NUMBER.search(str(link))):
            number = int(found[1])
        if number is not None:
            return os.strerror(number)
        # what Python adds by itself says nothing of an error that is not of writing
        link = link.__cause__ or (link.__context__ if isinstance(link, OSError | RuntimeError) else None)
    if isinstance(error, OSError):  # numpy says how much it could not write, and not why
        return _asked(place.parent) or str(error)
    if isinstance(error, RuntimeError) and _CUT_SHORT.search(str(error)):
        return _asked(place.parent) or "it could not be written whole; see whether the disk was full"
    return None


def _asked(folder: Path) -> str | None:
    """Return why a disk refuses to be written to; None if it does not."""
    probe = folder / f".{os.getpid()}.probe"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.strerror
    finally:
        with suppress(OSError):
            probe.unlink()
    return None


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
            with writing(path, place, partial):
                yield partial
                os.replace(partial, place)
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
            with writing(path, place, partial):
                partial.mkdir()
                yield partial
                if not replace:
                    # somebody else may have filled it meanwhile
                    refuse_full(path)
                put_in_place(partial, place)
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
