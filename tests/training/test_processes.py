"""What a launcher says, what it left behind, and one run at a time in a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from proteinlm.errors import ConfigError, InUseError, UnavailableError
from proteinlm.progress import SilentProgress
from proteinlm.recipe import train
from proteinlm.training import processes
from proteinlm.training.processes import Launched, join, launched, sole_run

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    """Set the variables of a launcher, as far as given."""

    def fill(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
            if name in variables:
                monkeypatch.setenv(name, str(variables[name]))

    return fill


@pytest.fixture
def port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": 1}, {"WORLD_SIZE": 1, "RANK": 0}, {"RANK": 0}], ids=str)
def test_one_process_is_alone_whatever_else_is_set(environment, variables):
    environment(**variables)
    assert launched() == Launched()


def test_several_processes_are_as_the_launcher_says(environment):
    environment(WORLD_SIZE=4, RANK=3, MASTER_ADDR="node7", MASTER_PORT=29500)
    assert launched() == Launched(rank=3, world_size=4, address="node7:29500")


WHOLE = {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": 2}, "WORLD_SIZE=2 is set in the environment, but RANK, MASTER_ADDR, MASTER_PORT not"),
        ({**WHOLE, "RANK": 2}, "RANK=2 WORLD_SIZE=2 .* are set in the environment: there is no such process"),
        ({**WHOLE, "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; expected a number"),
        ({**WHOLE, "MASTER_PORT": "x"}, "MASTER_PORT is 'x' in the environment; expected a number"),
    ],
    ids=["half", "no such process", "no number", "no port"],
)
def test_variables_that_cannot_be_of_a_launcher_are_named(
    environment, recipe, tiny_corpus, tmp_path, variables, message
):
    environment(**variables)
    with pytest.raises(ConfigError, match=f"{message}.*take these variables away: env -u RANK"):
        train(recipe(), tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Notes(SilentProgress):
    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def test_a_process_whose_others_do_not_come_says_why_it_waits_and_ends(environment, monkeypatch, port):
    environment(**{**WHOLE, "MASTER_PORT": port})
    monkeypatch.setattr(processes, "NOTICED_WAIT", 0.1)
    monkeypatch.setattr(processes, "LONGEST_WAIT", 1.0)
    notes = Notes()
    with pytest.raises(UnavailableError, match=f"2 processes do not find each other at 127.0.0.1:{port}"):
        join(launched(), "gloo", notes)
    (text,) = notes.texts
    assert text.startswith(
        f"process 0 of 2 still waits for the others at 127.0.0.1:{port}, because RANK=0 WORLD_SIZE=2"
    )


def test_a_port_that_is_in_use_is_named(environment):
    with socket.create_server(("", 0)) as server:
        taken = server.getsockname()[1]
        environment(**{**WHOLE, "MASTER_PORT": taken})
        with pytest.raises(UnavailableError, match=f"MASTER_PORT is {taken}, a port that another program"):
            join(launched(), "gloo", Notes())


def test_second_run_into_a_folder_is_refused_while_the_first_lasts(recipe, tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    for resume in (False, True):
        with sole_run(folder), pytest.raises(InUseError, match=f"run: is being trained by process {os.getpid()} on"):
            train(recipe(), tiny_corpus, folder, resume=resume)
    assert train(recipe(), tiny_corpus, folder).progress.step == 6
    assert "lock" not in {path.name for path in folder.iterdir()}


def test_lock_of_a_run_that_was_killed_holds_nobody_up(recipe, tiny_corpus, tmp_path):
    program = "import os, sys, pathlib; from proteinlm.training.processes import sole_run\n"
    program += "with sole_run(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert train(recipe(), tiny_corpus, tmp_path / "run").progress.step == 6


def test_only_the_first_process_holds_the_folder(environment, tmp_path):
    with sole_run(tmp_path / "run"):
        environment(**{**WHOLE, "RANK": 1})
        with sole_run(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / "lock").exists()
