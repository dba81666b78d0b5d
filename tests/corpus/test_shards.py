"""What goes into shards comes out of them, and what is no shard is refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tempfile
from pathlib import Path

import h5py
import numpy
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest, layout, open_corpus
from proteinlm.corpus.open_shards import OpenShards
from proteinlm.corpus.ordered_threads import Worker
from proteinlm.corpus.shard_borders import ShardBorders
from proteinlm.corpus.shard_file import block_digests
from proteinlm.corpus.shard_reader import SequenceSet, open_shard
from proteinlm.corpus.work_folder import WorkFolder
from proteinlm.corpus.written_shard import split_entry
from proteinlm.errors import ShardError
from proteinlm.sequence import FastaRecord, decode, encode
from proteinlm.sequence.record_blocks import ReadingPosition, block_of
from proteinlm.sequence.timings import Timings

PROTEINS = [(f"sp|P{n:05d}|TEST", "MKTAYIAKQRQISFVKSHFSRQ"[n % 7 :] + "ACDEFGHIKLM"[: n % 11]) for n in range(60)]


@pytest.fixture
def corpus(write_fasta, tmp_path):
    """Sixty proteins in shards of 100 residues."""
    config = IngestionConfig(shard_residues=100, splitting=SplittingConfig(validation_share=0.3))
    ingest([write_fasta(PROTEINS)], tmp_path / "corpus", config=config)
    return open_corpus(tmp_path / "corpus")


def _first_shard(corpus):
    return corpus.path / corpus.index.splits["train"].shards[0].file


def _set_attribute(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def _block(proteins):
    records = [FastaRecord(identifier, "", residues, "file", 1) for identifier, residues in proteins]
    return block_of(records, ReadingPosition(0, 0, 1, 0, 0))


def _shards(folder, blocks, shard_residues):
    """Write blocks, each with the numbers of the records to take, and return the split."""
    work = WorkFolder(Path(folder))
    for place in (work.corpus, work.open_shards):
        place.mkdir(exist_ok=True)
    borders, shards = (
        ShardBorders(shard_residues),
        OpenShards(work, has_clusters=True, writer=Worker(is_threaded=False), timings=Timings()),
    )
    found = []
    for block, numbers in blocks:
        for part in borders.parts(numpy.cumsum(numpy.diff(block.offsets)[numbers])):
            found.append(shards.finish_before("train", part.shard))
            taken = numbers[part.start : part.stop]
            shards.get("train", part.shard).append(block, taken, taken.astype(numpy.uint64))
    found.append(shards.finish_before("train"))
    return split_entry([shard for shard in found if shard is not None])


# the first call compiles
@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=8).filter(str.isprintable),
            st.binary(min_size=1, max_size=30),
            st.integers(0, 2) | st.just(1),
        ),
        max_size=20,
    ),
    st.integers(1, 60),
    st.integers(1, 20),
)
def test_any_sequences_come_back_from_shards_of_any_size(proteins, shard_residues, block_size):
    cuts = range(0, len(proteins), block_size)
    parts = [proteins[start : start + block_size] for start in cuts]
    blocks = [
        (_block([protein[:2] for protein in part]), numpy.flatnonzero([protein[2] > 0 for protein in part]))
        for part in parts
    ]
    taken = [protein for protein in proteins if protein[2] > 0]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        entry = _shards(folder, blocks, shard_residues)
        found = SequenceSet([open_shard(WorkFolder(Path(folder)).corpus / shard.file, shard) for shard in entry.shards])
        assert [found.identifier(n) for n in range(len(found))] == [identifier for identifier, *_ in taken]
        assert [found.tokens(n).tolist() for n in range(len(found))] == [
            encode(residues).tokens.tolist() for _, residues, _ in taken
        ]
        assert found.lengths.tolist() == [len(residues) for _, residues, _ in taken]
        assert sum(entry.token_counts) == entry.num_residues == found.lengths.sum()
        assert entry.longest == max(found.lengths, default=0)
        assert all(shard.num_residues <= shard_residues or shard.num_sequences == 1 for shard in entry.shards)
        if len(blocks) > 1:
            # the same records in one block
            whole = _block([protein[:2] for protein in proteins]), numpy.flatnonzero([p[2] > 0 for p in proteins])
            again = _shards(other, [whole], shard_residues)
            assert [shard.num_sequences for shard in again.shards] == [shard.num_sequences for shard in entry.shards]


def test_clusters_stand_beside_the_sequences_where_they_are_known(tmp_path):
    block = _block([(f"p{number}", b"MKV") for number in range(5)])
    entry = _shards(tmp_path, [(block, numpy.array([0, 2, 4]))], 6)
    with h5py.File(tmp_path / "corpus" / entry.shards[0].file) as file:
        assert file["clusters"].dtype == "<u8"
        assert file["clusters"][:].tolist() == [0, 2]


def test_a_written_shard_has_the_digests_of_what_is_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 256)
    block = _block([(f"protein {number}", b"MKVLAT" * number) for number in range(1, 40)])
    (shard,) = _shards(tmp_path, [(block, numpy.arange(len(block)))], 10**6).shards
    assert shard.block_digests == "".join(block_digests(tmp_path / "corpus" / shard.file))
    with h5py.File(tmp_path / "corpus" / shard.file) as file:
        content = b"".join(file[name][:].tobytes() for name in layout.DTYPES)
        assert [file[name].id.get_offset() % 8 for name in layout.DTYPES] == [0] * 5
    assert shard.digest == xxhash.xxh3_128_hexdigest(content)


def test_splits_hold_every_protein_once(corpus):
    found = {}
    for split in corpus.splits:
        sequences = corpus.sequences(split)
        found |= {sequences.identifier(n): decode(sequences.tokens(n)) for n in range(len(sequences))}
    assert len(corpus.index.splits["train"].shards) > 2
    assert found == dict(PROTEINS)


def test_tokens_are_a_read_only_view_of_the_file(corpus):
    tokens = corpus.sequences("train").tokens(0)
    assert tokens.base is not None
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 0


def test_sequences_outside_the_split_are_refused(corpus):
    sequences = corpus.sequences("train")
    for number in (-1, len(sequences)):
        with pytest.raises(IndexError):
            sequences.tokens(number)


def test_a_pickled_set_reads_the_same_sequences(corpus):
    sequences = corpus.sequences("train")
    sequences.tokens(0)
    data = pickle.dumps(sequences)
    # the maps themselves stay behind
    assert len(data) < 500 * len(corpus.index.splits["train"].shards)
    again = pickle.loads(data)
    assert all((again.tokens(n) == sequences.tokens(n)).all() for n in range(len(sequences)))


def _residues_of(sequences, number):
    return sequences.tokens(number).tobytes()


def test_forked_processes_read_the_same_sequences(corpus):
    sequences = corpus.sequences("train")
    expected = [_residues_of(sequences, n) for n in range(len(sequences))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_residues_of, [(sequences, n) for n in range(len(sequences))]) == expected


def test_token_counts_are_those_of_the_tokens(corpus):
    for split, summary in corpus.splits.items():
        sequences = corpus.sequences(split)
        tokens = numpy.concatenate([sequences.tokens(n) for n in range(len(sequences))])
        assert summary.token_counts.tolist() == numpy.bincount(tokens, minlength=33).tolist()


def test_unknown_split_names_the_known_ones(corpus):
    with pytest.raises(ShardError, match="has no split 'test'; it has train, validation_iid"):
        corpus.sequences("test")


def test_missing_corpus_says_how_to_build_one(tmp_path):
    with pytest.raises(ShardError, match=r"nowhere: is no corpus \(no such folder\); build one with 'proteinlm ingest"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(
        ShardError, match=r"holds no corpus\.json\); build one with 'proteinlm ingest FILES -o corpus/'"
    ):
        open_corpus(tmp_path)


def test_damaged_index_is_refused(corpus):
    index = corpus.path / layout.INDEX_FILE
    index.write_text(index.read_text()[:200])
    with pytest.raises(ShardError, match=r"corpus\.json: is damaged"):
        open_corpus(corpus.path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format_version", 1, "has format version 1 but this program reads 2"),
        ("alphabet", "5f1c", "was written with alphabet 5f1c but this program uses"),
        ("digest", 7, "digest: "),
    ],
)
def test_index_of_another_version_or_alphabet_is_refused(corpus, name, value, message):
    index = corpus.path / layout.INDEX_FILE
    index.write_text(json.dumps({**json.loads(index.read_text()), name: value}))
    with pytest.raises(ShardError, match=message):
        open_corpus(corpus.path)


def _change_split(corpus, change):
    path = corpus.path / layout.INDEX_FILE
    table = json.loads(path.read_text())
    change(table["splits"]["train"])
    path.write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda split: split["token_counts"].pop(),
            r"train\.token_counts: is damaged \(found 32 where the alphabet has",
        ),
        (lambda split: split["token_counts"].__setitem__(4, 0), r"train\.token_counts: .* where num_residues is"),
        (lambda split: split.update(num_sequences=7), r"train\.num_sequences: is damaged \(found 7 where its shards"),
        (lambda split: split["shards"].pop(), r"train\.num_sequences: .* where its shards have"),
        (lambda split: split["shards"].reverse(), "digest: is damaged"),
        (lambda split: split["shards"][0].update(digest="0" * 32), "digest: is damaged"),
    ],
    ids=["32 counts", "counts", "sequences", "lost shard", "order of shards", "digest"],
)
def test_index_that_does_not_agree_with_itself_is_refused(corpus, change, message):
    _change_split(corpus, change)
    with pytest.raises(ShardError, match=message):
        open_corpus(corpus.path)


@pytest.mark.parametrize("dataset", ["offsets", "identifier_offsets"])
@pytest.mark.parametrize(("place", "value"), [(0, 1), (1, 10**6), (1, -1), (-1, 5)])
def test_offsets_out_of_order_or_bounds_are_refused_when_mapped(corpus, dataset, place, value):
    with h5py.File(_first_shard(corpus), "r+") as file:
        file[dataset][place] = value
    sequences = corpus.sequences("train")
    with pytest.raises(ShardError, match=rf"train-00000\.h5: dataset '{dataset}' does not rise from 0 to "):
        sequences.tokens(0), sequences.identifier(0)


def test_missing_shard_is_named(corpus):
    _first_shard(corpus).unlink()
    with pytest.raises(ShardError, match=r"train-00000\.h5: no such file"):
        corpus.sequences("train")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut_off_shard_is_refused(corpus, share):
    shard = _first_shard(corpus)
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ShardError, match=r"train-00000\.h5: is damaged or cut off"):
        corpus.sequences("train")


@pytest.mark.parametrize(("name", "value"), [("alphabet", "5f1c"), ("format_version", 9), ("digest", "0" * 32)])
def test_shard_of_another_kind_is_refused(corpus, name, value):
    _set_attribute(_first_shard(corpus), name, value)
    with pytest.raises(ShardError, match=rf"train-00000\.h5: has {name} {value} where .* is expected"):
        corpus.sequences("train")


def test_shards_in_each_others_place_are_refused(corpus):
    first, second = (corpus.path / f"train-0000{n}.h5" for n in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ShardError, match=r"train-00001\.h5: has digest"):
        corpus.sequences("train")


def _add_clusters(corpus, clusters):
    """Write clusters, by shard, into the training shards."""
    for shard, numbers in zip(corpus.index.splits["train"].shards, clusters, strict=True):
        with h5py.File(corpus.path / shard.file, "r+") as file:
            file.create_dataset(layout.CLUSTERS_DATASET, data=numbers)


def _numbers(corpus):
    sizes = [shard.num_sequences for shard in corpus.index.splits["train"].shards]
    generator = numpy.random.default_rng(0)
    return [generator.integers(0, 2**64, size=size, dtype=numpy.uint64) for size in sizes]


def test_clusters_come_back_shard_after_shard(corpus):
    numbers = _numbers(corpus)
    _add_clusters(corpus, numbers)
    sequences = corpus.sequences("train")
    assert sequences.has_clusters
    assert sequences.clusters.dtype == numpy.uint64
    assert sequences.clusters.tolist() == numpy.concatenate(numbers).tolist()
    assert pickle.loads(pickle.dumps(sequences)).clusters.tolist() == sequences.clusters.tolist()


def test_clusters_of_a_corpus_without_any_are_refused(corpus):
    sequences = corpus.sequences("train")
    assert not sequences.has_clusters
    with pytest.raises(ShardError, match=r"train-00000\.h5: has no dataset 'clusters'; ingest again with a table of"):
        _ = sequences.clusters


def test_shard_with_fewer_clusters_than_sequences_is_refused(corpus):
    _add_clusters(corpus, [numbers[1:] for numbers in _numbers(corpus)])
    with pytest.raises(ShardError, match=r"train-00000\.h5: has not one cluster for each sequence"):
        corpus.sequences("train")


def test_clusters_of_another_type_are_refused(corpus):
    _add_clusters(corpus, [numbers.astype(numpy.float64) for numbers in _numbers(corpus)])
    with pytest.raises(ShardError, match=r"dataset 'clusters' is not flat, contiguous <u8"):
        corpus.sequences("train")


def test_an_identifier_that_is_no_text_is_damage(write_fasta, tmp_path):
    path = ingest([write_fasta([("first", "MKV"), ("second", "MKVL")])], tmp_path / "corpus").path
    with h5py.File(path / "train-00000.h5", "r+") as file:
        file["identifiers"][6] = 0xFF
    sequences = open_corpus(path).sequences("train")
    assert sequences.identifier(0) == "first"
    with pytest.raises(ShardError, match=r"train-00000\.h5: the identifier of sequence 1 is damaged"):
        sequences.identifier(1)
