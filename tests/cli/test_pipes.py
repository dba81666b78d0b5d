"""``embed`` reads what comes through a pipe, and reads it once."""

from __future__ import annotations

import gzip
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from proteinlm.attention import SoftmaxConfig
from proteinlm.cli.main import main
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint

TEXT = b">a\nMKV\n>b\nMKLAG\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ModelConfig(num_layers=1, hidden_size=8, num_heads=2, feed_forward_size=8, attention=SoftmaxConfig())
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    save_checkpoint(path, MaskedLM(settings, seed=0), {"packing": {"context": "isolated"}}, step=1)
    return path


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """End a test that waits for a second writer, who never comes."""

    def end(*_: object) -> None:
        raise TimeoutError("waited a minute for a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["/dev/fd", "/dev/stdin", "named pipe"])
def pipe_with(request: pytest.FixtureRequest, tmp_path: Path):
    """Put bytes into a pipe and return the path at which they can be read once."""
    before = os.dup(0)
    opened: list[int] = []

    def pipe_with(content: bytes) -> str:
        if request.param == "named pipe":
            os.mkfifo(tmp_path / "pipe")
            threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True).start()
            return f"{tmp_path}/pipe"
        reader, writer = os.pipe()
        opened.append(reader)
        os.write(writer, content)
        os.close(writer)
        if request.param == "/dev/fd":
            return f"/dev/fd/{reader}"
        os.dup2(reader, 0)
        return "/dev/stdin"

    yield pipe_with
    os.dup2(before, 0)
    for descriptor in (before, *opened):
        os.close(descriptor)


def embed(checkpoint: Path, *words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["embed", "--checkpoint", str(checkpoint), "--device", "cpu", *map(str, words)])
    return int(end.value.code or 0)


@pytest.mark.parametrize("content", [TEXT, gzip.compress(TEXT)], ids=["plain", "gzip"])
def test_embed_reads_a_pipe(checkpoint: Path, tmp_path: Path, pipe_with, content: bytes, capsys):
    assert embed(checkpoint, pipe_with(content), "-o", tmp_path / "out.h5") == 0, capsys.readouterr().err
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["a", "b"]


def test_embed_reads_a_pipe_among_files(checkpoint: Path, tmp_path: Path, pipe_with, capsys):
    (tmp_path / "first.fasta").write_bytes(b">first\nMKV\n")
    code = embed(checkpoint, tmp_path / "first.fasta", pipe_with(TEXT), "-o", tmp_path / "out.h5")
    assert code == 0, capsys.readouterr().err
    with h5py.File(tmp_path / "out.h5") as file:
        assert list(file) == ["first", "a", "b"]


@pytest.mark.parametrize("verb", ["embed", "compare", "ingest", "inspect"])
def test_closed_standard_input_is_said(checkpoint: Path, tmp_path: Path, monkeypatch, capsys, verb: str):
    """As a shell's ``<&-`` leaves it."""
    monkeypatch.setattr(sys, "stdin", None)
    options = ["--checkpoint", str(checkpoint), "--device", "cpu"] if verb in {"embed", "compare"} else []
    output = [] if verb == "inspect" else ["-o", f"{tmp_path}/out{'.h5' if verb == 'embed' else ''}"]
    with pytest.raises(SystemExit, match="1"):
        main([verb, "-", *options, *output])
    assert "proteinlm: standard input: is closed; pipe sequences into it, or name a file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
