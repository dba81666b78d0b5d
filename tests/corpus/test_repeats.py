"""Sequences that are equal to an earlier one of the corpus are counted by split."""

from __future__ import annotations

import pytest

from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest, open_corpus
from proteinlm.corpus.repeats import count_repeats
from proteinlm.errors import OutputError


def test_each_repeat_of_an_earlier_sequence_counts_once(write_fasta, tmp_path):
    records = [("a", "MKV"), ("b", "MKV"), ("c", "MK"), ("d", "mkv"), ("e", "MKVX"), ("f", "MKVX")]
    corpus = ingest([write_fasta(records)], tmp_path / "corpus", config=IngestionConfig(shard_residues=4)).path
    # d has the tokens of a, and shards make no difference
    assert sum(count_repeats(open_corpus(corpus)).values()) == 3


@pytest.mark.parametrize("shard_residues", [1, 1 << 20], ids=["a shard for each sequence", "one shard"])
def test_repeats_are_counted_over_all_shards(write_fasta, tmp_path, shard_residues):
    proteins = [(f"p{number}", "MKTAYIAKQR"[: 1 + number % 7] + "W" * (number % 2)) for number in range(60)]
    config = IngestionConfig(shard_residues=shard_residues)
    report = ingest([write_fasta(proteins)], tmp_path / "corpus", config=config)
    expected = len(proteins) - len({residues for _, residues in proteins})
    assert sum(count_repeats(open_corpus(report.path), memory_bytes=1).values()) == expected


def test_repeats_are_of_the_split_that_comes_later(write_fasta, tmp_path):
    records = [(f"p{number}", "ACDEFGHIKLMNPQRSTVWY"[: 3 + number % 17]) for number in range(100)]
    config = IngestionConfig(splitting=SplittingConfig(validation_share=0.4))
    corpus = open_corpus(ingest([write_fasta(records)], tmp_path / "corpus", config=config).path)
    found = count_repeats(corpus)
    seen = set()
    for split, sequences in ((name, corpus.sequences(name)) for name in corpus.splits):
        texts = [sequences.tokens(number).tobytes() for number in range(len(sequences))]
        new = {text for text in texts if text not in seen}
        assert found[split] == len(texts) - len(new)
        seen |= new
    assert sum(found.values()) == 83


def test_memory_makes_no_difference_and_nothing_is_left(sample_corpus, tmp_path):
    found = [count_repeats(sample_corpus, memory_bytes=size, folder=tmp_path) for size in (1 << 14, 1 << 30)]
    assert found[0] == found[1]
    assert sum(found[0].values()) == 1_163
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(sample_corpus, tmp_path):
    with pytest.raises(OutputError, match="cannot be written there"):
        count_repeats(sample_corpus, folder=tmp_path / "nowhere")
