"""What was ingested comes back as FASTA, residue by residue."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tempfile
from pathlib import Path

import h5py
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpus import IngestionConfig, SplittingConfig, export_fasta, ingest, open_corpus
from proteinlm.errors import ShardError
from proteinlm.sequence import FastaConfig, read_fasta

LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO"
PROTEINS = [("sp|P00001|A_TEST", LETTERS), ("second", LETTERS[::-1] * 7), ("third", "MKTAYIAKQRQISFV" * 4)]


@pytest.fixture
def corpus(write_fasta, tmp_path):
    ingest([write_fasta(PROTEINS)], tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


def _records(path, **reading):
    return [(record.identifier, record.residues) for record in read_fasta([path], config=FastaConfig(**reading))]


def test_every_record_of_the_sample_comes_back(sample_corpus, sample_manifest, tmp_path):
    report = export_fasta(sample_corpus, tmp_path / "back.fasta")
    expected = _records(sample_manifest.parent / "sample" / "uniprotkb_sample.fasta.xz")
    assert (report.num_sequences, report.num_residues) == (18759, 8573832)
    assert sorted(_records(tmp_path / "back.fasta")) == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(LETTERS + "-.", min_size=1, max_size=200).map(lambda text: "M" + text), min_size=1, max_size=12),
    st.integers(0, 70),
    st.integers(1, 300),
)
def test_an_export_ingested_again_is_the_same_corpus(sequences, line_width, shard_residues):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.fasta").write_text("".join(f">p{n}\n{text}\n" for n, text in enumerate(sequences)))
        config = IngestionConfig(
            reading=FastaConfig(gaps="keep"),
            splitting=SplittingConfig(validation_share=0.4),
            shard_residues=shard_residues,
        )
        first = ingest([folder / "a.fasta"], folder / "first", config=config)
        export_fasta(open_corpus(folder / "first"), folder / "b.fasta", line_width=line_width)
        again = ingest([folder / "b.fasta"], folder / "again", config=config)
        assert first.index.digest == again.index.digest


def test_lines_are_as_long_as_asked_for(corpus, tmp_path):
    for width, expected in ((0, 175), (60, 60), (25, 25), (1000, 175)):
        export_fasta(corpus, tmp_path / "back.fasta", line_width=width)
        lines = (tmp_path / "back.fasta").read_text().splitlines()
        assert max(len(line) for line in lines if line[0] != ">") == expected


def test_splits_are_written_alone_or_together(sample_corpus, tmp_path):
    names = ["validation_ood", "validation_iid"]
    for name in names:
        export_fasta(sample_corpus, tmp_path / name, splits=[name])
    report = export_fasta(sample_corpus, tmp_path / "both", splits=names)
    assert (tmp_path / "both").read_bytes() == b"".join((tmp_path / name).read_bytes() for name in names)
    assert report.num_sequences == 941 + 467


@pytest.mark.parametrize(
    ("suffix", "decompress"),
    [
        (".gz", gzip.decompress),
        (".xz", lzma.decompress),
        (".bz2", bz2.decompress),
        (".zst", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    ],
)
def test_name_says_how_the_file_is_compressed(corpus, tmp_path, suffix, decompress):
    export_fasta(corpus, tmp_path / "plain.fasta")
    for name in ("first", "second"):
        export_fasta(corpus, tmp_path / f"{name}.fasta{suffix}")
    first, second = ((tmp_path / f"{name}.fasta{suffix}").read_bytes() for name in ("first", "second"))
    assert decompress(first) == (tmp_path / "plain.fasta").read_bytes()
    assert first == second


def test_unknown_split_leaves_no_file(corpus, tmp_path):
    with pytest.raises(ShardError, match="has no split 'test'; it has train, validation_iid"):
        export_fasta(corpus, tmp_path / "back.fasta", splits=["test"])
    assert not (tmp_path / "back.fasta").exists()


@pytest.mark.parametrize("token", [0, 29 + 2, 33, 255])
def test_a_token_that_is_no_residue_is_refused_and_leaves_no_file(corpus, tmp_path, token):
    with h5py.File(corpus.path / "train-00000.h5", "r+") as file:
        file["tokens"][30] = token
    with pytest.raises(ShardError, match="train: sequence 1 holds a token that is no residue; run proteinlm verify"):
        export_fasta(corpus, tmp_path / "back.fasta.gz")
    assert [path.name for path in tmp_path.iterdir() if "back" in path.name] == []


def test_a_damaged_identifier_is_refused(corpus, tmp_path):
    with h5py.File(corpus.path / "train-00000.h5", "r+") as file:
        file["identifiers"][0] = 0xFF
    with pytest.raises(ShardError, match="the identifier of sequence 0 is damaged"):
        export_fasta(corpus, tmp_path / "back.fasta")
