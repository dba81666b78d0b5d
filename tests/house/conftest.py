"""The tree and the documents as they are."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "proteinlm"
# kept by tools, not by people
NOT_OURS = {".venv", "build", "dist", "node_modules"}


def _tree(pattern: str) -> list[Path]:
    paths = (path.relative_to(ROOT) for path in ROOT.rglob(pattern))
    return sorted(path for path in paths if not any(part.startswith(".") or part in NOT_OURS for part in path.parts))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every document to ``document`` and every module of the package to ``module``."""
    files = {"document": _tree("*.md"), "module": _tree("proteinlm/**/*.py")}
    for name, paths in files.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [ROOT / path for path in paths], ids=[str(path) for path in paths])


@pytest.fixture
def syntax(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def options_of() -> Callable[[str], set[str]]:
    """Return the options that a verb knows, as typed."""

    def options_of(verb: str) -> set[str]:
        command: click.Command = importlib.import_module(f"proteinlm.cli.{verb}").command
        context = click.Context(command, help_option_names=["-h", "--help"])
        parameters = command.get_params(context)
        return {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}

    return options_of
