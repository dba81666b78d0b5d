"""A shard file: plain HDF5 whose bytes depend on nothing but the sequences.

HDF5 lays the file out; the bytes of the datasets are then written past it, which takes neither the
interpreter's lock nor HDF5's, and digests are taken from memory instead of from the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proteinlm.corpus import layout
from proteinlm.errors import OutputError
from proteinlm.sequence import alphabet_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Datasets = Mapping[str, "NDArray[Any]"]
# one call writes no more than 2 GiB on Linux
_WRITTEN_AT_ONCE = 1 << 24
# whoever maps a dataset of 8-byte numbers finds them where processors want them
_ALIGNMENT = 8


def content_digest(datasets: Datasets) -> str:
    """Return the xxh3_128 of the datasets' bytes in the order of their names in the format."""
    import xxhash

    digest = xxhash.xxh3_128()
    for values in datasets.values():
        digest.update(values.data)
    text: str = digest.hexdigest()
    return text


def block_digests(path: Path) -> Iterator[str]:
    """Yield the xxh3_64 of each 1 MiB of a file, the last block shorter, in 16 hex digits."""
    import xxhash

    # read, not mapped: a sector that cannot be read ends a process that maps it, without a word
    with path.open("rb") as file:
        while block := file.read(layout.BLOCK_BYTES):
            yield xxhash.xxh3_64_hexdigest(block)


def write_shard(path: Path, datasets: Datasets, *, digest: str) -> str:
    """Write contiguous, uncompressed datasets and the attributes that tell what they are.

    Args:
        path: the file to make, or to make anew.
        datasets: by name, in the order of ``layout.DTYPES``, each of its type.
        digest: their ``content_digest``.

    Returns:
        the ``block_digests`` of the file, joined.

    Raises:
        OutputError: if the disk is full or the file cannot be written for another reason.
    """
    try:
        positions = _lay_out(path, datasets, digest)
        with path.open("r+b") as file:
            parts = sorted((positions[name], _bytes(values)) for name, values in datasets.items() if len(values))
            for position, content in parts:
                _write_at(file.fileno(), content, position)
            return "".join(_digests_of_blocks(file.fileno(), parts))
    except (OSError, RuntimeError) as error:
        # HDF5 tells of a full disk in either, with the reason inside a long text
        found = re.search(r"error message = '([^']+)'", str(error))
        reason = found[1] if found else getattr(error, "strerror", None) or error
        raise OutputError(f"{path.name}: cannot be written ({reason})") from error


def _lay_out(path: Path, datasets: Datasets, digest: str) -> dict[str, int]:
    """Make the file with room for its datasets, and return where each is to be written."""
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
        for name, values in datasets.items():
            dtype = h5py.h5t.py_create(np.dtype(layout.DTYPES[name]))
            space = h5py.h5s.create_simple(values.shape)
            dataset = h5py.h5d.create(file.id, name.encode(), dtype, space, dcpl=creation)
            positions[name] = dataset.get_offset()
    return positions


def _bytes(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).data.cast("B")


def _write_at(descriptor: int, content: memoryview, position: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written : written + _WRITTEN_AT_ONCE], position + written)


def _digests_of_blocks(descriptor: int, parts: list[tuple[int, memoryview]]) -> Iterator[str]:
    """Yield what ``block_digests`` gives, reading only what lies outside of ``parts``."""
    import xxhash

    digest = xxhash.xxh3_64()
    room = layout.BLOCK_BYTES
    for piece in _pieces(descriptor, parts):
        done = 0
        while done < len(piece):
            taken = piece[done : done + room]
            digest.update(taken)
            done += len(taken)
            room -= len(taken)
            if not room:
                yield digest.hexdigest()
                digest.reset()
                room = layout.BLOCK_BYTES
    if room < layout.BLOCK_BYTES:
        yield digest.hexdigest()


def _pieces(descriptor: int, parts: list[tuple[int, memoryview]]) -> Iterator[bytes | memoryview]:
    """Yield all bytes of a file in order, those of ``parts`` from memory."""
    end = 0
    for position, content in parts:
        yield os.pread(descriptor, position - end, end)
        yield content
        end = position + len(content)
    yield os.pread(descriptor, os.fstat(descriptor).st_size - end, end)
