"""A write that fails is told at the end, by the reason that the system gave, and ends no process."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy
import pytest

from proteinlm.inference.disk_file import DiskFile, disk_file


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let the system refuse what lies beyond so many bytes of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_can_be_read_at_any_place(tmp_path: Path):
    with disk_file(tmp_path / "file") as file:
        assert file.write(numpy.arange(3, dtype=numpy.uint8)) == 3
        file.seek(5)
        file.write(b"xy")
        # zeros behind the end, as HDF5 expects
        assert (file.seek(-1, 2), file.read(3), file.tell()) == (6, b"y\0\0", 9)
        file.truncate(6)
        assert (file.seek(1), file.read(5)) == (1, b"\1\2\0\0x")
    assert (tmp_path / "file").read_bytes() == b"\0\1\2\0\0x"


def test_a_failed_write_is_remembered_and_nothing_more_is_written(tmp_path: Path):
    with DiskFile(tmp_path / "file") as file:
        with files_of_at_most(100):
            assert file.write(b"x" * 60) == 60
            file.check()
            assert file.write(b"y" * 60) == 60
        assert file.write(b"z") == 1
        with pytest.raises(OSError, match="File too large"):
            file.check()
    assert (tmp_path / "file").read_bytes() == b"x" * 60 + b"y" * 40


def test_a_failed_write_that_nobody_asked_for_is_raised_at_the_end(tmp_path: Path):
    with pytest.raises(OSError, match="File too large"), files_of_at_most(10), disk_file(tmp_path / "file") as file:
        file.write(b"x" * 11)


def write_hdf5(path: Path) -> None:
    with disk_file(path) as disk, h5py.File(disk, "w", track_order=True) as file:
        for number in range(60):
            file.create_dataset(f"{number}", data=numpy.full(100, number))
        # what HDF5 takes for addresses, where it reads what was not written
        file.create_dataset("names", data=["name"] * 100, dtype=h5py.string_dtype())


@pytest.mark.parametrize("num_bytes", [0, 100, 1_000, 5_000, 20_000, 60_000])
def test_hdf5_survives_a_failed_write(tmp_path: Path, num_bytes: int):
    for _ in range(20):
        with pytest.raises(OSError, match="File too large"), files_of_at_most(num_bytes):
            write_hdf5(tmp_path / "file.h5")
