"""How many threads compute, and how they wait for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner

from proteinlm.cli.main import VERBS, group
from proteinlm.cli.options import threads_option

# a verb that tells how torch, which it imports only when it runs, found its environment
PROGRAM = """
import json, os, sys
import click
from proteinlm.cli.options import threads_option

@click.command()
@threads_option
def verb():
    assert "torch" not in sys.modules
    import torch
    print(json.dumps([torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"]]))

verb()
"""


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        (["--threads", "1"], {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, [1, "passive"]),
        ([], {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}, [2, "passive"]),
        ([], {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"}, [2, "active"]),
    ],
    ids=["option over variable", "variable", "policy of the user"],
)
def test_threads_are_set_before_torch_is_imported(words, variables, expected):
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == expected


def test_threads_are_set_where_torch_was_imported_before(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "1" if name != "OMP_WAIT_POLICY" else "passive")

    @click.command()
    @threads_option
    def verb():
        click.echo(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        assert CliRunner().invoke(verb, ["--threads", "2"]).output == "2\n"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_compute_have_threads_and_no_others(verb):
    command = group.get_command(click.Context(group), verb)
    has_threads = any(parameter.name == "threads" for parameter in command.params)
    assert has_threads == (verb in {"train", "embed", "evaluate", "compare"})
