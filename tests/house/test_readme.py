"""The commands of the README work as printed, one after the other, on what make quickstart leaves."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.house.test_documents import commands

# options that name what is read; arguments do as well
READ = {"checkpoint", "corpus", "manifest"}
# verbs that take the name of what comes with the program, and the folder that it is in
NAMED = {"download": "data_manifests", "train": "pipelines"}
_FENCE = re.compile(r"^```(?:sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read_and_written(verb: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Return the paths that a command reads and those that it writes."""
    command: click.Command = importlib.import_module(f"proteinlm.cli.{verb}").command
    given = command.make_context(verb, list(words), resilient_parsing=True).params
    read: list[str] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument) or parameter.name in READ:
            value = given[parameter.name or ""]
            read += [str(path) for path in (value if isinstance(value, list | tuple) else [value]) if path is not None]
    return read, [str(given[name]) for name in ("output", "picture") if given.get(name) is not None]


@pytest.fixture
def left_by_quickstart(project_root: Path, tmp_path: Path) -> set[str]:
    """What the commands of pipelines/quickstart.sh write, as make quickstart starts it."""
    (makefile,) = re.findall(r"sh (pipelines/quickstart\.sh.*)", (project_root / "Makefile").read_text())
    (tmp_path / "proteinlm").write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\0" "$word"; done; echo\n')
    (tmp_path / "proteinlm").chmod(0o755)
    (tmp_path / "pipelines").symlink_to(project_root / "pipelines")
    done = subprocess.run(
        ["sh", *makefile.split()],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    typed = [line.split("\0")[:-1] for line in done.stdout.splitlines() if "\0" in line]
    return {path for verb, *words in typed for path in read_and_written(verb, words)[1]}


def blocks(root: Path) -> Iterator[str]:
    """Yield the blocks of the README's section on use."""
    text = (root / "README.md").read_text(encoding="utf-8")
    yield from _FENCE.findall(text[text.index("## Use it") : text.index("## Which page")])


def test_what_a_command_of_the_readme_reads_is_there(project_root: Path, left_by_quickstart: set[str]):
    there = {str(Path(path)) for path in left_by_quickstart}
    missing, typed = [], 0
    text = "".join(f"```sh\n{block}```\n" for block in blocks(project_root) if "import " not in block)
    for verb, *words in commands(text):
        typed += 1
        read, written = read_and_written(verb, words)
        for path in read:
            is_made = any(Path(path).is_relative_to(made) for made in there)
            shipped = [path, f"{NAMED[verb]}/{path}.toml"] if verb in NAMED else [path]
            is_shipped = any((project_root / one).exists() for one in shipped)
            if not is_made and not is_shipped:
                missing.append((verb, path))
        again = [path for path in written if str(Path(path)) in there]
        assert again == [], f"{verb} is refused where {again} is"
        there |= {str(Path(path)) for path in written}
    assert typed >= 8
    assert missing == []


def test_python_of_the_readme_loads_the_run_of_the_quickstart(project_root: Path, left_by_quickstart: set[str]):
    named = [path for block in blocks(project_root) for path in re.findall(r'proteinlm\.load\("([^"]+)"', block)]
    assert named
    assert set(named) <= left_by_quickstart
