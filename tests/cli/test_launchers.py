"""Several processes of one command: what the launchers type, and what people read when it fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from proteinlm.cli import main as command_line
from proteinlm.cli.main import main
from proteinlm.model import load_checkpoint
from proteinlm.training.states import read_progress

RECIPE = """
packing = { window_length = 256 }
model = { num_layers = 1, hidden_size = 16, num_heads = 2, feed_forward_size = 16 }
schedule = { num_steps = 2, warmup_steps = 0 }
training = { windows_per_step = 2, windows_per_micro_batch = 1 }
validation = { num_proteins = 4 }
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(module, *words, folder):
    """Run a launcher to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.processes
def test_deepspeeds_launcher_trains_in_two_processes(tiny_corpus, tmp_path):
    (tmp_path / "two.toml").write_text(RECIPE)
    words = ["--num_gpus", 2, "--master_port", free_port(), "--module", "proteinlm"]
    words += ["train", "two.toml", "--corpus", tiny_corpus, "--output", "run"]
    done = launched("deepspeed.launcher.runner", *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_progress(tmp_path / "run" / "training_state")["identity"]["processes"] == 2
    assert load_checkpoint(tmp_path / "run").step == 2


@pytest.mark.processes
@pytest.mark.parametrize("fault", [["quikstart"], ["quickstart", "--corpsu=x"]], ids=["error", "wrong usage"])
def test_what_all_processes_of_torchrun_refuse_is_said_once(tmp_path, fault):
    words = ["--standalone", "--nproc-per-node=2", "-m", "proteinlm", "train", *fault, "--corpus=x", "--output=x"]
    done = launched("torch.distributed.run", *words, folder=tmp_path)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if "did you mean" in line or "No such option" in line]
    assert len(told) == 1
    # what follows is the launcher's own
    assert "proteinlm/cli" not in done.stderr


@pytest.mark.parametrize("word", ["--local_rank=3", "--local-rank=3"])
@pytest.mark.parametrize("known", [None, "1"], ids=["not told", "told"])
def test_the_rank_that_a_launcher_types_is_the_one_it_sets(monkeypatch, capsys, word, known):
    # or what is set here would stay
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.delenv("LOCAL_RANK")
    if known:
        monkeypatch.setenv("LOCAL_RANK", known)
    with pytest.raises(SystemExit) as end:
        main([word, "train", "--help"])
    assert end.value.code == 0
    assert os.environ["LOCAL_RANK"] == (known or "3")
    assert "local" not in capsys.readouterr().out


def test_a_process_that_fails_alone_says_why(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command_line, "PATIENCE_SECONDS", 0.01)
    with pytest.raises(SystemExit) as end:
        main(["inspect", f"{tmp_path}/nothing"])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith(f"proteinlm: {tmp_path}/nothing: no such file")
