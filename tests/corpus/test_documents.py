"""docs/shards.md says what is true of the shards."""

from __future__ import annotations

import re

import h5py

from proteinlm.corpus import ingest
from proteinlm.sequence import TOKENS, alphabet_digest

PROTEINS = [("sp|P00001|A_TEST", "MKTAYIAKQRXBUZO"), ("second", "MSILVTRPSP")]


def test_the_example_reads_a_corpus_with_h5py_alone(project_root, write_fasta, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (project_root / "docs" / "shards.md").read_text(), re.DOTALL)
    ingest([write_fasta(PROTEINS)], tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(row[1:] for row in rows) == sorted([name, residues] for name, residues in PROTEINS)


def test_datasets_and_attributes_are_those_of_the_table(project_root, write_fasta, tmp_path):
    text = (project_root / "docs" / "shards.md").read_text()
    named = re.findall(r"^\| `(\w+)` \| (?:uint8|u?int64)", text, re.MULTILINE)
    clusters = tmp_path / "clusters.tsv"
    clusters.write_text("P00001\tP00001\n")
    ingest([write_fasta(PROTEINS)], tmp_path / "corpus", clusters=clusters)
    with h5py.File(tmp_path / "corpus" / "train-00000.h5") as file:
        assert set(file) == set(named)
        assert all(file[name].chunks is None and file[name].compression is None for name in named)
        assert dict(file.attrs).keys() == {"format_version", "alphabet", "digest"}


def test_alphabet_attribute_can_be_computed_as_described():
    import hashlib

    assert alphabet_digest() == hashlib.sha256("\n".join(TOKENS).encode()).hexdigest()[:16]


def test_every_count_of_the_reader_is_explained(project_root):
    text = (project_root / "docs" / "reading.md").read_text()
    sequence = project_root / "proteinlm" / "sequence"
    code = (sequence / "fasta.py").read_text() + (sequence / "fasta_text.py").read_text()
    kinds = set(re.findall(r'_count\("([^"]+)"', code))
    assert len(kinds) == 8
    assert [kind for kind in kinds if f"`{kind}`" not in text] == []
