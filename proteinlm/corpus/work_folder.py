"""The folder in which a corpus grows: one process at a time, and kept when the work breaks off.

It lies beside the output under a fixed name, ``.NAME.ingesting``, so that whoever starts again finds
it. What is finished in it is renamed to the output.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from proteinlm import outputs
from proteinlm.errors import FastaError, ManifestError, OutputError
from proteinlm.locks import LOCK_FILE, locked

_STATE = "state.json"


class ChangedSourceError(FastaError):
    """A source that is not what it was when the work broke off."""


class UnusableWorkError(OutputError):
    """Work that broke off and is in the way, or cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """The places in it: ``corpus`` becomes the output, all others are of use for going on only."""

    path: Path

    @property
    def corpus(self) -> Path:
        """The folder that becomes the output."""
        return self.path / "corpus"

    @property
    def state(self) -> Path:
        """How far the work is; without this file nothing can be gone on with."""
        return self.path / _STATE

    @property
    def shards(self) -> Path:
        """A line for every shard that was written."""
        return self.path / "shards.jsonl"

    @property
    def rewritten(self) -> Path:
        """A line for every shard that was written again, without duplicates."""
        return self.path / "rewritten.jsonl"

    @property
    def replacements(self) -> Path:
        """The folder of shards that are about to take the place of those with duplicates."""
        return self.path / "replacements"

    @property
    def open_shards(self) -> Path:
        """The folder of what is in shards that are not yet full."""
        return self.path / "open"

    @property
    def digests(self) -> Path:
        """The folder of what finds duplicates at the end."""
        return self.path / "digests"

    @property
    def clusters(self) -> Path:
        """The folder for tables of clusters that outgrow the memory."""
        return self.path / "clusters"

    @property
    def has_state(self) -> bool:
        """Whether there is work to go on with; where the system does not say, there may be."""
        try:
            self.state.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def begin(self) -> None:
        """Make the folders in it."""
        for folder in (self.corpus, self.open_shards, self.digests, self.clusters, self.replacements):
            folder.mkdir(exist_ok=True)

    def clear(self) -> None:
        """Remove all that is in it but the lock."""
        # the state first: what is left of a removal that breaks off is then no work to go on with
        self.state.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK_FILE:
                entry.unlink()


def work_folder_of(output: Path) -> WorkFolder:
    """Return where the corpus ``output`` grows, whether or not anything is there.

    Raises:
        OutputError: if nothing can lie beside it.
    """
    place = outputs.resolved(output)
    if not place.name:
        raise OutputError(f"{output}: has no name of its own; name a folder in it")
    return WorkFolder(place.with_name(f".{place.name}.ingesting"))


@contextmanager
def work_folder(output: Path) -> Iterator[WorkFolder]:
    """Lock the work folder of ``output``; its ``corpus`` becomes the output when the block ends.

    If the block ends by an exception the folder is kept where it can be gone on with, unless the
    input is at fault. What lies in it from before is left to the caller.

    Raises:
        OutputError: if the output exists, somebody else holds the folder, or it cannot be written.
    """
    folder = work_folder_of(output)
    try:
        with _becoming(folder, output):
            yield folder
    except OSError as error:
        # of a file of the work, of one that is read, or of one that the system does not name
        subject = f"{error.filename}: cannot be used" if error.filename else f"{output}: cannot be written"
        raise OutputError(f"{subject} ({error.strerror or error}){_kept(folder)}") from error


@contextmanager
def _becoming(folder: WorkFolder, output: Path) -> Iterator[None]:
    place = outputs.resolved(output)
    _remove_leftover(folder, place, output)
    outputs.refuse_full(output)
    with outputs.parents_made(place), locked(folder.path, output, "ingested"):
        try:
            yield
            # somebody else may have filled it meanwhile
            outputs.refuse_full(output)
            outputs.put_in_place(folder.corpus, place)
        except UnusableWorkError:
            raise
        except OutputError as error:
            raise OutputError(f"{error}{_kept(folder)}") from error.__cause__
        except (FastaError, ManifestError) as error:
            # a source that could not be reached is not at fault
            if not isinstance(error, ChangedSourceError) and not isinstance(error.__cause__, OSError):
                _remove(folder)
            raise
        finally:
            if not folder.has_state:
                _remove(folder)
        _remove(folder)


def _remove(folder: WorkFolder) -> None:
    # what cannot be removed does no harm: without its state it is no work to go on with
    with suppress(OSError):
        folder.state.unlink(missing_ok=True)
        shutil.rmtree(folder.path, ignore_errors=True)


def _remove_leftover(folder: WorkFolder, place: Path, output: Path) -> None:
    """Remove the folder of a corpus that was finished when its process was killed."""
    if os.path.isdir(place) and os.path.isdir(folder.path) and not folder.corpus.is_dir():
        with suppress(OutputError), locked(folder.path, output, "ingested"):
            if not folder.corpus.is_dir():
                _remove(folder)


def _kept(folder: WorkFolder) -> str:
    """Return what a message says of work that may be gone on with."""
    if not folder.has_state:
        return ""
    return f"; what is done is kept in {folder.path}, go on with it by --resume"
