"""Whatever the system refuses, at whatever moment, ends in one line that names a file and the reason."""

from __future__ import annotations

import builtins
import errno
import io
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proteinlm.cli.main import main
from proteinlm.locks import locked
from proteinlm.model import load_checkpoint

RECIPE = """
[packing]
window_length = 256
[model]
num_layers = 1
hidden_size = 8
num_heads = 1
feed_forward_size = 8
[model.attention]
kind = "identity"
[schedule]
num_steps = {steps}
warmup_steps = 1
[training]
windows_per_step = 1
log_interval = 1
checkpoint_interval = 1
keep_states = 1
[validation]
num_proteins = 1
[engine]
kind = "local"
"""


class Refusing:
    """The calls by which files come and go; one of those that concern a folder fails.

    Args:
        folder: what the calls are counted of.
        at: which of them fails; None only counts.
    """

    def __init__(self, folder: Path, at: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.at, self.num_calls = str(folder), at, 0
        for module, name in (
            (os, "mkdir"),
            (os, "rename"),
            (os, "replace"),
            (os, "unlink"),
            (os, "rmdir"),
            (os, "scandir"),
        ):
            monkeypatch.setattr(module, name, self._refusing(getattr(module, name)))
        opening = self._refusing(io.open)
        monkeypatch.setattr(io, "open", opening)
        monkeypatch.setattr(builtins, "open", opening)

    def _refusing(self, call):
        def refusing(path=".", *arguments, **settings):
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder):
                self.num_calls += 1
                if self.num_calls == self.at:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
            return call(path, *arguments, **settings)

        return refusing


def _ended(words: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def _train(folder: Path, corpus: Path, output: Path, *options: str, steps: int = 2) -> int:
    (folder / "run.toml").write_text(RECIPE.format(steps=steps))
    return _ended(["train", str(folder / "run.toml"), "--corpus", str(corpus), "--output", str(output), *options])


def test_training_that_is_refused_any_file_ends_in_one_line_and_can_go_on(tiny_corpus, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        counted = Refusing(tmp_path / "counted", None, patch)
        assert _train(tmp_path, tiny_corpus, tmp_path / "counted") == 0
    assert counted.num_calls > 20
    capsys.readouterr()
    # a step that shares no divisor with the calls of a training step reaches all kinds of them
    for at in range(1, counted.num_calls + 1, 3):
        output = tmp_path / f"run{at}"
        with pytest.MonkeyPatch.context() as patch:
            refusing = Refusing(output, at, patch)
            code = _train(tmp_path, tiny_corpus, output)
        printed = capsys.readouterr().err
        assert "Traceback" not in printed
        if code == 0:  # what could not be removed is left, and nothing more
            assert load_checkpoint(output).step == 2
            continue
        assert (code, refusing.num_calls >= at) == (1, True), printed
        (line,) = (line for line in printed.splitlines() if line.startswith("proteinlm:"))
        assert str(output) in line
        assert os.strerror(errno.EIO) in line
        assert _train(tmp_path, tiny_corpus, output, *(["--resume"] if (output / "run.json").exists() else [])) == 0
        capsys.readouterr()


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.json"])
def test_what_may_not_be_read_is_not_called_missing(tiny_corpus, tmp_path, capsys, monkeypatch, name):
    assert _train(tmp_path, tiny_corpus, tmp_path / "run", steps=1) == 0
    plain = io.open

    def open_as_another(path, *arguments, **settings):
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *arguments, **settings)

    monkeypatch.setattr(io, "open", open_as_another)
    capsys.readouterr()
    assert _ended(["evaluate", str(tmp_path / "run"), "--corpus", str(tiny_corpus)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"proteinlm: {tmp_path}/run/checkpoint/{name}: cannot be read (Permission denied)"
    )


def _run(*words: str, **streams) -> subprocess.CompletedProcess[str]:
    closed = streams.pop("closed", None)
    before = (lambda: os.close(closed)) if closed is not None else None
    command = [sys.executable, "-m", "proteinlm", *words]
    return subprocess.run(command, text=True, check=False, preexec_fn=before, **streams)


def test_a_full_standard_output_is_named():
    with Path("/dev/full").open("w") as full:
        done = _run("--version", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "proteinlm: standard output: No space left on device\n")


@pytest.mark.parametrize("closed", [0, 1, 2], ids=["input", "output", "errors"])
def test_a_closed_stream_is_an_empty_one(tmp_path, closed):
    done = _run("inspect", str(tmp_path / "none"), capture_output=True, closed=closed)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("proteinlm: ") == (closed != 2)


def test_a_terminal_that_is_closed_ends_the_step_and_saves(tiny_corpus, tmp_path):
    (tmp_path / "run.toml").write_text(RECIPE.format(steps=100_000).replace("checkpoint_interval = 1", ""))
    ours, theirs = pty.openpty()
    words = ["train", str(tmp_path / "run.toml"), "--corpus", str(tiny_corpus), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "proteinlm", *words],
        preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509  (this process has no other thread)
        close_fds=True,
        pass_fds=[theirs],
    )
    os.close(theirs)
    journal, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (journal.exists() and '"train"' in journal.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.close(ours)
    assert process.wait(timeout=120) == 1
    assert 0 < load_checkpoint(tmp_path / "run").step < 100_000


def test_a_second_embedding_into_an_output_is_refused_and_not_told_to_resume(tiny_corpus, tmp_path, capsys):
    assert _train(tmp_path, tiny_corpus, tmp_path / "run", steps=1) == 0
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQRQISF\n")
    partial = tmp_path / "out.h5.partial"
    words = ["embed", str(tmp_path / "in.fasta"), "--checkpoint", str(tmp_path / "run"), "-o", str(tmp_path / "out.h5")]
    capsys.readouterr()
    with locked(partial, partial, "written"):
        assert _ended([*words, "--resume"]) == 1
    printed = capsys.readouterr().err
    assert f"proteinlm: {partial}: is being written by process {os.getpid()} on" in printed
    assert "go on with --resume" not in printed
    assert _ended([*words, "--resume"]) == 0
