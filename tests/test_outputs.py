"""Results that are whole or not there."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proteinlm.errors import OutputError
from proteinlm.outputs import file_beside, folder_beside, writing


def test_file_appears_when_it_is_whole(tmp_path):
    with file_beside(tmp_path / "new" / "result.txt") as partial:
        partial.write_text("whole")
        assert not (tmp_path / "new" / "result.txt").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.txt"]


def test_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(TypeError), file_beside(path) as partial:
        partial.write_text(3)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.txt"]


def test_failure_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError), folder_beside(tmp_path / "out") as folder:
        (folder / "half").write_text(3)
    assert list(tmp_path.iterdir()) == []


def test_full_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(OutputError, match="already exists and is not empty"), folder_beside(tmp_path / "out"):
        pass


def _fill_meanwhile(path):
    with folder_beside(path) as folder:
        (folder / "late").write_text("y")
        path.mkdir()
        (path / "early").write_text("x")


def test_folder_filled_by_another_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(OutputError, match="already exists and is not empty"):
        _fill_meanwhile(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "early"]


def test_replaced_folder_holds_only_the_new_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with folder_beside(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("y")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot make this folder"), file_beside(tmp_path / "file" / "below"):
        pass


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, parent = _dead_process(), os.getppid()
    for number in (dead, parent):
        (tmp_path / f".out.{number}.partial").mkdir()
        (tmp_path / f".out.txt.{number}.partial").write_text("half")
    (tmp_path / f".other.{dead}.partial").mkdir()
    with folder_beside(tmp_path / "out"), file_beside(tmp_path / "out.txt") as partial:
        partial.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("out", "out.txt", f".out.{parent}.partial", f".out.txt.{parent}.partial", f".other.{dead}.partial")
    }


def test_an_empty_working_directory_is_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with folder_beside(Path(".")) as folder:
        (folder / "new").write_text("y")
    assert os.listdir() == ["new"]
    assert Path("new").resolve() == tmp_path / "new"


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with folder_beside(tmp_path / "out") as folder:
        (folder / "new").write_text("y")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/new"]


@pytest.mark.parametrize("exists", [True, False], ids=["empty folder", "dangling"])
def test_a_link_stays_and_its_target_is_filled(tmp_path, exists):
    if exists:
        (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with folder_beside(tmp_path / "link") as folder:
        (folder / "new").write_text("y")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "target") == ["new"]


def test_a_file_behind_a_link_is_written(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with file_beside(tmp_path / "link") as partial:
        partial.write_text("y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "y"


def _replace_and_lose_the_new_folder(path):
    with folder_beside(path, replace=True) as folder:
        folder.rmdir()


def test_a_folder_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        _replace_and_lose_the_new_folder(tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/old"]


@pytest.mark.parametrize("beside", [file_beside, folder_beside])
def test_failure_removes_the_folders_that_were_made_and_no_others(tmp_path, beside):
    (tmp_path / "kept").mkdir()
    with pytest.raises(KeyError), beside(tmp_path / "kept" / "new" / "newer" / "out"):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse longer files, as a full disk refuses all."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _by_torch(path: Path) -> None:
    import torch

    torch.save(torch.zeros(50_000), path)


def _by_torch_into_a_file(path: Path) -> None:
    import torch

    with path.open("wb") as file:
        torch.save(torch.zeros(50_000), file)


def _by_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(50_000)}, path)


def _by_h5py(path: Path) -> None:
    import h5py
    import numpy

    with h5py.File(path, "w") as file:
        file["a"] = numpy.zeros(50_000)


def _by_numpy(path: Path) -> None:
    import numpy

    numpy.save(path, numpy.zeros(50_000))


@pytest.mark.parametrize("size", [1, 100_000], ids=["first byte", "in the middle"])
@pytest.mark.parametrize("write", [_by_torch, _by_torch_into_a_file, _by_safetensors, _by_h5py, _by_numpy])
def test_what_libraries_hide_is_named_with_the_reason(tmp_path, write, size):
    path = tmp_path / "result.bin"
    reason = rf"^{path}: cannot be written \({os.strerror(errno.EFBIG)}\)$"
    with files_of_at_most(size), pytest.raises(OutputError, match=reason), writing(path):
        write(path)


def test_a_file_that_is_read_meanwhile_keeps_its_own_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="input"), folder_beside(tmp_path / "out") as folder:
        (folder / "new").write_text((tmp_path / "input").read_text())
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_of_ours_stays_one(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path / "out"):
        raise RuntimeError("shapes do not fit")
