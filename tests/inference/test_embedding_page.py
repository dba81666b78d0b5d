"""The page docs/embedding.md works from its first block to its last."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from proteinlm.cli.main import main
from proteinlm.sequence.fasta import FastaRecord

_FENCE = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(checkpoint: Path, proteins: list[FastaRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the page takes for granted."""
    shutil.copytree(checkpoint, tmp_path / "runs" / "first" / "checkpoint")
    text = "".join(f">{protein.identifier}\n{protein.residues.decode()}\n" for protein in proteins)
    (tmp_path / "sequences.fasta").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_of_the_page_runs(desk: Path, project_root: Path):
    names: dict[str, object] = {}
    page = (project_root / "docs" / "embedding.md").read_text(encoding="utf-8")
    for language, block in _FENCE.findall(page):
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            with pytest.raises(SystemExit) as end:
                main(shlex.split(line.removeprefix("proteinlm ")))
            assert end.value.code == 0, line
    assert {path.name for path in desk.iterdir()} == {
        *("runs", "sequences.fasta", "embeddings.h5", "residues.h5", "residues.per_tok.h5", "residues.bos.h5"),
        *("layers.layer0.h5", "layers.layer2.h5", "flat.h5", "arrays.npz", "pt", "all.pt"),
    }
