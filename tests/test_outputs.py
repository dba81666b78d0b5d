"""Results that are whole or not there."""

from __future__ import annotations

import pytest

from proteinlm.errors import OutputError
from proteinlm.outputs import file_beside, folder_beside


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
