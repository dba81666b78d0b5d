"""Whatever the system refuses, and at any moment: one line that names it, and an output that is whole or goes on."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proteinlm.cli.main import main

PROTEINLM = [sys.executable, "-c", "from proteinlm.cli.main import main; main()"]


def test_every_call_into_the_file_system_may_fail(tmp_path, project_root):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library, place = tmp_path / "failing_calls.so", tmp_path / "place"
    place.mkdir()
    source = Path(__file__).with_name("failing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    words = [sys.executable, str(source.with_suffix(".py")), json.dumps(str(project_root))]
    environment = os.environ | {"LD_PRELOAD": str(library), "FAILING_PATH": str(place)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    counts = re.findall(r"^(\w+) failed: (\d+)$", done.stdout, re.MULTILINE)
    faults = [line for line in done.stdout.splitlines() if " failed: " not in line]
    assert not faults, "\n".join(faults)
    # nearly all of them matter
    assert [(name, int(count) > 5) for name, count in counts] == [
        (name, True) for name in ("verify", "export", "download", "ingest")
    ]


@pytest.fixture
def failed(capsys):
    """Run the program, which fails; return the line that it says."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == 1
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("proteinlm: "))
        return line.removeprefix("proteinlm: ")

    return run


def test_standard_input_that_is_closed_is_told(failed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    assert failed("ingest", "-", "-o", tmp_path / "corpus").startswith("standard input: is closed; pipe sequences")
    assert not list(tmp_path.iterdir())


class _Broken(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, _):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_standard_input_that_cannot_be_read_is_told(failed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(_Broken())))
    assert failed("ingest", "-", "-o", tmp_path / "corpus") == "standard input: cannot be read (Input/output error)"


def test_standard_output_that_is_closed_is_told(failed, monkeypatch, tiny_corpus):
    monkeypatch.setattr(sys, "stdout", None)
    assert failed("export", tiny_corpus, "-o", "-") == "standard output: is closed; name a file to write"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [["verify"], ["export", "-o", "-"]], ids=str)
def test_standard_output_on_a_full_disk_is_told_once(tiny_corpus, project_root, words):
    environment = os.environ | {"PYTHONPATH": str(project_root)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROTEINLM, *words, str(tiny_corpus)], stdout=full, stderr=subprocess.PIPE, env=environment, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"proteinlm: standard output: No space left on device\n"


def test_a_folder_among_the_files_is_named_with_a_pattern_for_what_is_in_it(failed, tmp_path):
    folder = tmp_path / "uniref"
    folder.mkdir()
    line = failed("ingest", folder, "-o", tmp_path / "corpus")
    assert line == f"{folder}: is a folder; there is no file in it to name"
    for name in ("a.fasta.gz", "b.fasta.gz", "README", ".c.txt", ".d.txt", ".e.txt"):
        (folder / name).write_bytes(b"")
    line = failed("ingest", folder, "-o", tmp_path / "corpus")
    assert line == f"{folder}: is a folder; name files in it, such as '{folder}/*.fasta.gz' for 2 of its 3 files"


def test_a_folder_that_may_not_be_listed_is_told_by_that(failed, monkeypatch, tmp_path):
    def refused(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refused)
    line = failed("ingest", tmp_path, "-o", tmp_path / "corpus")
    assert line == f"{tmp_path}: is a folder; its files cannot be listed (Permission denied)"
