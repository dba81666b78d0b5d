"""Verification passes what is whole, and names the first bytes that are not."""

from __future__ import annotations

import json
import random

import h5py
import pytest
import xxhash

from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest, layout, open_corpus, verify_corpus
from proteinlm.corpus.shard_file import block_digests
from proteinlm.errors import ShardError

PROTEINS = [(f"sp|P{n:05d}|TEST", "MKTAYIAKQRQISFVKSHFSRQ"[n % 7 :] + "ACDEFGHIKLM"[: n % 11]) for n in range(60)]
SHARD = "train-00001.h5"


@pytest.fixture
def corpus(write_fasta, tmp_path, monkeypatch):
    """Sixty proteins in shards of 200 residues, the files in blocks of 256 bytes."""
    monkeypatch.setattr(layout, "BLOCK_BYTES", 256)
    config = IngestionConfig(shard_residues=200, splitting=SplittingConfig(validation_share=0.3))
    ingest([write_fasta(PROTEINS)], tmp_path / "corpus", config=config)
    return open_corpus(tmp_path / "corpus")


def _flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_whole_corpus_passes_with_its_counts(corpus):
    report = verify_corpus(corpus)
    assert report.num_sequences == len(PROTEINS)
    assert report.num_residues == sum(len(residues) for _, residues in PROTEINS)
    assert report.num_shards == len(list(corpus.path.glob("*.h5")))
    assert report.num_bytes == sum(path.stat().st_size for path in corpus.path.glob("*.h5"))


def test_a_flipped_bit_anywhere_in_a_file_is_named_by_its_block(corpus):
    path = corpus.path / SHARD
    size = path.stat().st_size
    for position in [0, size - 1, *random.Random(0).sample(range(size), 200)]:
        _flip(path, position)
        start = position // 256 * 256
        with pytest.raises(ShardError) as caught:
            verify_corpus(corpus)
        place = f"bytes {start:,} to {min(start + 256, size):,}"
        assert str(caught.value) == f"{path}: is damaged, first in {place}; ingest again"
        _flip(path, position)
    verify_corpus(corpus)


def test_of_several_damaged_blocks_and_shards_the_first_is_named(corpus):
    for shard in ("train-00002.h5", SHARD):
        for position in (3000, 700):
            _flip(corpus.path / shard, position)
    with pytest.raises(ShardError, match=rf"{SHARD}: is damaged, first in bytes 512 to 768;"):
        verify_corpus(corpus)


@pytest.mark.parametrize(
    ("length", "message"), [(1024, "is cut off after byte 1,024"), (1000, "is damaged, first in bytes 768 to 1,000")]
)
def test_a_cut_off_shard_is_named_with_where_it_ends(corpus, length, message):
    path = corpus.path / SHARD
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ShardError, match=rf"{SHARD}: {message}; ingest again"):
        verify_corpus(corpus)


def test_a_missing_shard_is_named(corpus):
    (corpus.path / SHARD).unlink()
    with pytest.raises(ShardError, match=rf"{SHARD}: no such file, though corpus\.json names it"):
        verify_corpus(corpus)


def test_bytes_after_the_end_of_a_shard_are_found(corpus):
    path = corpus.path / SHARD
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(1000))
    start = size // 256 * 256
    with pytest.raises(ShardError, match=rf"{SHARD}: is damaged, first in bytes {start:,} to {start + 256:,};"):
        verify_corpus(corpus)


def test_content_that_is_not_what_was_ingested_is_found_though_its_blocks_are_whole(corpus):
    with h5py.File(corpus.path / SHARD, "r+") as file:
        file["tokens"][0] = 24
    path = corpus.path / layout.INDEX_FILE
    table = json.loads(path.read_text())
    (shard,) = [shard for shard in table["splits"]["train"]["shards"] if shard["file"] == SHARD]
    shard["block_digests"] = "".join(block_digests(corpus.path / SHARD))
    path.write_text(json.dumps(table))
    with pytest.raises(ShardError, match=rf"{SHARD}: is damaged \(its content has digest "):
        verify_corpus(open_corpus(corpus.path))


def test_exchanged_token_counts_are_found(corpus):
    path = corpus.path / layout.INDEX_FILE
    table = json.loads(path.read_text())
    counts = table["splits"]["train"]["token_counts"]
    counts[4], counts[5] = counts[5], counts[4]
    path.write_text(json.dumps(table))
    with pytest.raises(ShardError, match=r"splits\.train\.token_counts are not those of its shards"):
        verify_corpus(open_corpus(corpus.path))


def test_digests_of_blocks_can_be_computed_as_described(corpus):
    for entry in corpus.index.splits["train"].shards:
        data = (corpus.path / entry.file).read_bytes()
        blocks = [data[start : start + 256] for start in range(0, len(data), 256)]
        assert entry.block_digests == "".join(xxhash.xxh3_64_hexdigest(block) for block in blocks)


def test_progress_reaches_every_residue(corpus):
    steps = []

    class Listener:
        def start(self, task, total, unit, done=0):
            steps.append(-total)

        def advance(self, amount, **figures):
            steps.append(amount)

        def finish(self):
            pass

    verify_corpus(corpus, progress=Listener())
    assert sum(steps) == 0
    assert steps[0] < 0
