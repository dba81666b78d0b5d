"""Importing is cheap and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "deepspeed", "numpy", "h5py", "matplotlib", "pydantic")


def run(root: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)


def heavy_after(root: Path, program: str) -> list[str]:
    """Return the heavy libraries that are loaded after ``program``."""
    report = f"import json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    return json.loads(run(root, f"{program}\n{report}").stdout.splitlines()[-1])


def test_importing_the_package_loads_no_heavy_library(project_root: Path):
    assert heavy_after(project_root, "import proteinlm") == []


HELP = """
from click.testing import CliRunner
from proteinlm.cli.main import group
assert CliRunner().invoke(group, {words!r}).exit_code == 0
"""


def test_help_loads_no_heavy_library(project_root: Path):
    assert heavy_after(project_root, HELP.format(words=["--help"])) == []


def test_help_of_a_verb_loads_neither_torch_nor_deepspeed(project_root: Path):
    from proteinlm.cli.main import VERBS

    program = "".join(HELP.format(words=[verb, "--help"]) for verb in VERBS)
    assert not {"torch", "deepspeed"} & set(heavy_after(project_root, program))


IMPORT_ALL = """
import importlib, pickle, pkgutil, random, sys
import numpy, torch
def state():
    return random.getstate(), pickle.dumps(numpy.random.get_state()), torch.get_rng_state().tolist()
before = state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
import proteinlm
for module in pkgutil.walk_packages(proteinlm.__path__, "proteinlm."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert "proteinlm.inference.embeddings" in sys.modules
assert (state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before
"""


def test_importing_every_module_changes_no_global_state(project_root: Path):
    assert run(project_root, IMPORT_ALL).stderr == ""


def test_package_has_no_other_attribute_by_chance():
    import proteinlm

    with pytest.raises(AttributeError, match="module 'proteinlm' has no attribute 'laod'"):
        _ = proteinlm.laod
