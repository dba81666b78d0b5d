"""What verbs write is for whom the umask says, so that colleagues can read what is passed on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proteinlm.cli.main import main

RECIPE = """
[packing]
window_length = 256
[model]
num_layers = 1
hidden_size = 8
num_heads = 1
feed_forward_size = 8
[schedule]
num_steps = 1
warmup_steps = 1
[training]
windows_per_step = 1
[validation]
num_proteins = 1
"""
UMASK = 0o007


@pytest.fixture
def umask():
    before = os.umask(UMASK)
    yield
    os.umask(before)


def _done(*words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert not end.value.code


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("engine", ["local", pytest.param("deepspeed", marks=pytest.mark.processes)])
def test_every_file_of_every_verb_follows_the_umask(tiny_corpus: Path, tmp_path: Path, engine: str):
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nLEERLGLIEVQAPILSRVGDGTQDNLSGAEKA\n")
    (tmp_path / "run.toml").write_text(f'{RECIPE}[engine]\nkind = "{engine}"\n')
    out = tmp_path / "out"
    fasta, run = str(tmp_path / "in.fasta"), str(out / "run")
    _done("train", str(tmp_path / "run.toml"), "--corpus", str(tiny_corpus), "--output", run)
    if engine == "local":
        for name in ("e.h5", "flat.h5", "e.npz", "e/"):
            layout = "flat" if name.startswith("flat") else "uniprot"
            _done("embed", fasta, "--checkpoint", run, "-o", f"{out}/{name}", "--layout", layout)
        _done("compare", fasta, "--checkpoint", run, "-o", f"{out}/report", "--features", "16", "--draws", "1")
        _done("ingest", fasta, "-o", f"{out}/corpus")
        _done("export", f"{out}/corpus", "-o", f"{out}/out.fasta.gz")
        _done("inspect", f"{out}/corpus", "--picture", f"{out}/lengths.png")
    expected = {True: 0o777 & ~UMASK, False: 0o666 & ~UMASK}
    # DeepSpeed lets its owner run the script that it adds
    modes = {path: path.stat().st_mode & (0o677 if path.suffix == ".py" else 0o777) for path in out.rglob("*")}
    assert len(modes) > 10
    assert {path: oct(mode) for path, mode in modes.items() if mode != expected[path.is_dir()]} == {}
