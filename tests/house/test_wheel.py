"""What `pip install .` puts into an environment is the whole program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("proteinlm", "data_manifests", "pipelines")
# what tools leave beside the sources, and what only a checkout can run or needs to explain
LEFT_OUT = ("__pycache__", "*.nbi", "*.nbc")
CHECKOUT_ONLY = {"proteinlm/pipelines/README.md", "proteinlm/pipelines/quickstart.sh"}

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

Run = Callable[..., subprocess.CompletedProcess[str]]


def quietly(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build(kind: str, tree: Path, folder: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of the tree and return the file."""
    quietly(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_{kind}({str(folder)!r})", cwd=tree)
    (made,) = folder.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def tree(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources alone: builds leave folders behind."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copy(project_root / name, tree)
    for name in FOLDERS:
        shutil.copytree(project_root / name, tree / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the tree, made as `pip install .` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    quietly(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, tree, cwd=tree)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command of an environment that holds the wheel, from a folder that is no checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    scheme = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    quietly(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # the libraries of this environment, but none of its .pth files: what is installed here for editing stays out
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        typed = [str(folder / "bin" / command), *words]
        return subprocess.run(typed, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run


def test_wheel_holds_every_file_of_the_program(tree: Path, wheel: Path):
    sources = {str(path.relative_to(tree)) for name in FOLDERS for path in (tree / name).rglob("*") if path.is_file()}
    expected = {name if name.startswith("proteinlm/") else f"proteinlm/{name}" for name in sources} - CHECKOUT_ONLY
    found = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert found == expected
    assert {"proteinlm/py.typed", "proteinlm/analysis/report.html.jinja"} <= found


def test_source_distribution_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path):
    archive = build("sdist", tree, tmp_path)
    unpacked = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    assert contents(build("wheel", tmp_path / unpacked, tmp_path)) == contents(wheel)


def test_installed_package_is_the_one_that_is_imported(installed: Run, tmp_path: Path):
    done = installed("python", "-c", "import proteinlm, sys; print(proteinlm.__file__.startswith(sys.prefix))")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_installed_command_shows_its_help(installed: Run):
    done = installed("proteinlm", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Language models of protein sequences" in done.stdout


def test_installed_command_knows_the_manifests(installed: Run):
    done = installed("proteinlm", "download", "nothing", "-o", "nothing")
    assert done.returncode == 1
    names = "swissprot, trembl, uniprotkb_sample, uniref100, uniref50, uniref90"
    assert done.stderr == (
        f"proteinlm: nothing: no such file, and no manifest of that name; expected a path, or one of {names}\n"
    )


def test_installed_command_resolves_a_recipe_by_name(installed: Run):
    done = installed("proteinlm", "inspect", "quickstart")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("quickstart: recipe\n")


def test_installed_command_reads_the_sample(installed: Run):
    done = installed("proteinlm", "inspect", "uniprotkb_sample")
    assert (done.returncode, done.stderr) == (0, "")
    # whose files lie beside their manifest
    assert "ingest it with: proteinlm ingest --manifest " in done.stdout
