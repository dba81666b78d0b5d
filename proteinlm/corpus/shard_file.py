"""A shard file: plain HDF5 whose bytes depend on nothing but the sequences.

HDF5 lays the file out; the bytes of the datasets are then written past it, which takes neither the
interpreter's lock nor HDF5's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.corpus import layout
from proteinlm.errors import OutputError, ShardError
from proteinlm.sequence import alphabet_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Datasets = Mapping[str, "NDArray[Any]"]
# one call writes no more than 2 GiB on Linux
_WRITTEN_AT_ONCE = 1 << 24
# whoever maps a dataset of 8-byte numbers finds them where processors want them
_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the datasets of a shard begin in its file, and the bytes between them by their position."""

    positions: Mapping[str, int]
    frame: tuple[tuple[int, bytes], ...]


def block_digest(block: bytes) -> str:
    """Return the xxh3_64 of a block in 16 hex digits."""
    import xxhash

    digest: str = xxhash.xxh3_64_hexdigest(block)
    return digest


def block_digests(path: Path) -> Iterator[str]:
    """Yield the digest of each 1 MiB of a file, the last block shorter."""
    # read, not mapped: a sector that cannot be read ends a process that maps it, without a word
    with path.open("rb") as file:
        while block := file.read(layout.BLOCK_BYTES):
            yield block_digest(block)


def content_digest(datasets: Datasets) -> str:
    """Return the xxh3_128 of the datasets' bytes in the order of their names in the format."""
    import xxhash

    digest = xxhash.xxh3_128()
    for values in datasets.values():
        digest.update(values.data)
    text: str = digest.hexdigest()
    return text


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what is wrong where a shard file cannot be written.

    Raises:
        OutputError: if the disk is full or the file cannot be written for another reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written ({system_reason(error) or error})") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what is wrong where the system does not give a shard file; any other error stays what it is.

    Raises:
        ShardError: if it does not.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(f"{path}: no such file, though {layout.INDEX_FILE} names it; ingest again") from error
    except Exception as error:
        if (reason := system_reason(error)) is None:
            raise
        raise ShardError(f"{path}: cannot be read ({reason})") from error


def system_reason(error: BaseException) -> str | None:
    """Return what the system said, which HDF5 puts into a long text of errors of any kind; None if it did not."""
    number = error.errno if isinstance(error, OSError) else None
    found = re.search(r"errno = (\d+)", str(error))
    number = number or (int(found[1]) if found else None)
    return os.strerror(number) if number else None


def write_shard(path: Path, datasets: Datasets, *, digest: str) -> str:
    """Write contiguous, uncompressed datasets and the attributes that tell what they are.

    Args:
        path: the file to make, or to make anew.
        datasets: by name, in the order of ``layout.DTYPES``, each of its type.
        digest: the xxh3_128 of their bytes in this order.

    Returns:
        the ``block_digests`` of the file, joined.

    Raises:
        OutputError: if the disk is full or the file cannot be written for another reason.
    """
    with writing(path):
        planned = lay_out(path, {name: len(values) for name, values in datasets.items()}, digest)
        with path.open("r+b") as file:
            for name, values in datasets.items():
                write_at(file.fileno(), values, planned.positions[name])
        return "".join(block_digests(path))


def lay_out(path: Path, sizes: Mapping[str, int], digest: str) -> Layout:
    """Make a shard file with room for its datasets, whose content is still to be written.

    Args:
        path: the file to make, or to make anew.
        sizes: elements of each dataset, in the order of ``layout.DTYPES``.
        digest: of what the datasets will hold.
    """
    import h5py

    # the room is there from the beginning and holds zeros until it is written, at no cost
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # without times the same sequences give the same bytes
    creation.set_obj_track_times(False)
    positions = {}
    with h5py.File(path, "w", alignment_threshold=1, alignment_interval=_ALIGNMENT) as file:
        file.attrs["format_version"] = layout.FORMAT_VERSION
        file.attrs["alphabet"] = alphabet_digest()
        file.attrs["digest"] = digest
        for name, size in sizes.items():
            dtype = h5py.h5t.py_create(np.dtype(layout.DTYPES[name]))
            dataset = h5py.h5d.create(file.id, name.encode(), dtype, h5py.h5s.create_simple((size,)), dcpl=creation)
            positions[name] = dataset.get_offset()
    return Layout(positions, tuple(_frame(path, sizes, positions)))


def start_of_tokens(path: Path) -> int:
    """Return where the tokens begin in shard files, as HDF5 is here.

    Args:
        path: is written and removed; the shard's name with another ending behind it.

    Raises:
        OutputError: if it cannot be written.
    """
    with writing(path):
        planned = lay_out(path, {layout.TOKENS_DATASET: 1}, "0" * 32)
        path.unlink()
    return planned.positions[layout.TOKENS_DATASET]


def _frame(path: Path, sizes: Mapping[str, int], positions: Mapping[str, int]) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a file that are in no dataset, with their positions."""
    # a dataset without elements has no position
    parts = sorted(
        (positions[name], size * np.dtype(layout.DTYPES[name]).itemsize) for name, size in sizes.items() if size
    )
    with path.open("rb") as file:
        end = 0
        for position, num_bytes in parts:
            file.seek(end)
            yield end, file.read(position - end)
            end = position + num_bytes
        file.seek(end)
        yield end, file.read()


def write_at(descriptor: int, values: NDArray[Any], position: int) -> None:
    """Write all bytes of a contiguous array at a position of a file."""
    content = values.view(np.uint8).data
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written : written + _WRITTEN_AT_ONCE], position + written)
