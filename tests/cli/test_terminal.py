"""Progress where nobody watches."""

from __future__ import annotations

from proteinlm.cli import terminal
from proteinlm.cli.terminal import TerminalProgress


def test_short_task_writes_nothing_to_a_log(capsys):
    progress = TerminalProgress()
    progress.start("reading", 10, "records")
    progress.advance(10)
    progress.finish()
    assert capsys.readouterr().err == ""


def test_long_task_writes_whole_lines_to_a_log(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "LOG_INTERVAL", 0.0)
    progress = TerminalProgress()
    progress.start("training", 4, "steps")
    progress.advance(1, loss="2.89")
    progress.finish()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("training: 1 of 4 steps, ")
    assert captured.err.endswith("left, loss 2.89\n")
