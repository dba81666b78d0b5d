"""Progress where nobody watches."""

from __future__ import annotations

import sys

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


def test_a_log_of_bytes_says_how_fast_they_come(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "LOG_INTERVAL", 0.0)
    progress = TerminalProgress()
    progress.start("downloading a.gz", 4_000_000, "B")
    progress.advance(1_000_000)
    text = capsys.readouterr().err
    assert text.startswith("downloading a.gz: 1,000,000 of 4,000,000 B, ")
    assert " MB/s, about " in text


def test_a_note_stands_on_a_line_of_its_own_beside_a_bar(capsys, monkeypatch):
    progress = TerminalProgress()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress.start("reading", 10, "records")
    progress.note("compiling")
    progress.finish()
    assert "compiling" in capsys.readouterr().err.replace("\r", "\n").split("\n")


def test_notes_about_the_work_go_to_stderr(capsys):
    TerminalProgress().note("an epoch draws one member of each of 9 clusters")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "an epoch draws one member of each of 9 clusters\n")
