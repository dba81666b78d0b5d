"""Recipes and manifests that come with the program are known by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from proteinlm.errors import ConfigError, ManifestError
from proteinlm.recipe import load_recipe
from proteinlm.shipped import find_anything, find_families, find_manifest, find_recipe

EVERY = [
    (find_recipe, "pipelines/quickstart.toml", ConfigError, "recipe"),
    (find_manifest, "data_manifests/uniref50.toml", ManifestError, "manifest"),
    (find_families, "data_manifests/performer_pfam_families.toml", ManifestError, "list of families"),
]
KINDS = pytest.mark.parametrize(("find", "path", "error", "kind"), EVERY, ids=[kind for *_, kind in EVERY])


@KINDS
def test_a_name_is_the_file_that_comes_with_the_program(project_root, find, path, error, kind):
    assert find(Path(path).stem) == find_anything(Path(path).stem) == project_root / path


@KINDS
def test_a_path_wins_over_a_name(tmp_path, monkeypatch, find, path, error, kind):
    monkeypatch.chdir(tmp_path)
    name = Path(path).stem
    Path(name).write_text("seed = 1\n")
    assert find(name) == find_anything(name) == Path(name)


@KINDS
def test_an_unknown_name_is_told_those_that_exist_and_the_nearest(project_root, find, path, error, kind):
    folder = (project_root / path).parent
    with pytest.raises(error) as caught:
        find(f"elsewhere/{Path(path).stem}s.toml")
    message = str(caught.value)
    assert message.startswith(f"elsewhere/{Path(path).stem}s.toml: no such file, and no {kind} of that name; ")
    assert f"did you mean '{Path(path).stem}'? expected a path, or one of " in message
    listed = set(message.rpartition("one of ")[2].split(", "))
    assert Path(path).stem in listed <= {file.stem for file in folder.glob("*.toml")}


def test_a_recipe_is_still_meant_beside_the_folder_that_the_quickstart_leaves(tmp_path, monkeypatch, project_root):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert find_recipe("quickstart") == project_root / "pipelines" / "quickstart.toml"
    assert load_recipe(find_recipe("quickstart")).packing.context == "isolated"


def test_everything_that_comes_with_the_program_has_a_name_of_its_own(project_root):
    files = [path for folder in ("pipelines", "data_manifests") for path in (project_root / folder).glob("*.toml")]
    assert [find_anything(path.stem) for path in files] == files
