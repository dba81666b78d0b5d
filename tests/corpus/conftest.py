"""The bundled sample, ingested once for all tests of the room."""

from __future__ import annotations

import pytest

from proteinlm.corpus import ingest_manifest, open_corpus


@pytest.fixture(scope="session")
def sample_manifest(project_root):
    return project_root / "data_manifests" / "uniprotkb_sample.toml"


@pytest.fixture(scope="session")
def sample_corpus(sample_manifest, tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "corpus"
    ingest_manifest(sample_manifest, path)
    return open_corpus(path)


@pytest.fixture
def write_fasta(tmp_path):
    """Write records, (identifier, residues), to a FASTA file and return its path."""

    def write(records, name="proteins.fasta"):
        path = tmp_path / name
        path.write_text("".join(f">{identifier}\n{residues}\n" for identifier, residues in records))
        return path

    return write
