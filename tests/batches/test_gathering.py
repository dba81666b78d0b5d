"""Windows copied from mapped shards, beside those that are joined piece by piece."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy
import pytest

from proteinlm.batches.packing import PackingConfig, build_window, plan_windows
from proteinlm.corpus import IngestionConfig, SplittingConfig, ingest, open_corpus
from proteinlm.sequence.alphabet import decode

FIELDS = ("tokens", "positions", "bounds", "num_tokens")


class Plain:
    """The proteins of a split one by one, so that windows are joined piece by piece."""

    def __init__(self, sequences):
        self._sequences = sequences

    def __len__(self):
        return len(self._sequences)

    def tokens(self, index):
        return self._sequences.tokens(index)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    """Proteins of 1 to 90 residues in shards of 100, so that datasets begin at any byte."""
    folder = tmp_path_factory.mktemp("gathering")
    generator = numpy.random.default_rng(0)
    proteins = [decode(generator.integers(4, 24, size=n).astype(numpy.uint8)) for n in generator.integers(1, 90, 150)]
    (folder / "x.fasta").write_text("".join(f">p{n}\n{residues}\n" for n, residues in enumerate(proteins)))
    config = IngestionConfig(shard_residues=100, splitting=SplittingConfig(validation_share=0.0))
    ingest([folder / "x.fasta"], folder / "corpus", config=config)
    return open_corpus(folder / "corpus").sequences("train")


def _windows(plan, sequences):
    built = [build_window(plan, window, sequences) for window in range(plan.num_windows)]
    return [[numpy.asarray(getattr(window, name)).tolist() for name in FIELDS] for window in built]


@pytest.mark.parametrize("context", ["isolated", "joint"])
@pytest.mark.parametrize("window_length", [8, 9, 17, 64, 8192])
def test_windows_are_those_joined_piece_by_piece(sequences, context, window_length):
    order = numpy.random.default_rng(window_length).permutation(len(sequences))
    plan = plan_windows(sequences.lengths, PackingConfig(window_length=window_length, context=context), order=order)
    assert _windows(plan, sequences) == _windows(plan, Plain(sequences))


def test_windows_have_the_types_of_those_joined_piece_by_piece(sequences):
    plan = plan_windows(sequences.lengths, PackingConfig(window_length=64))
    found, expected = (build_window(plan, 0, each) for each in (sequences, Plain(sequences)))
    for name in FIELDS[:3]:
        assert getattr(found, name).dtype == getattr(expected, name).dtype


def _first_window(sequences):
    return build_window(plan_windows(sequences.lengths, PackingConfig(window_length=64)), 0, sequences).tokens.tolist()


def test_other_processes_gather_from_their_own_memory(sequences):
    expected = _first_window(sequences)
    # with addresses of this process, that must not travel
    assert _first_window(pickle.loads(pickle.dumps(sequences))) == expected
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_first_window, [sequences]) == [expected]


def test_plan_of_longer_proteins_is_refused(sequences):
    plan = plan_windows(sequences.lengths + 5, PackingConfig(window_length=128))
    with pytest.raises(IndexError, match="outside of its protein"):
        build_window(plan, 0, sequences)


def test_plan_of_more_proteins_is_refused(sequences):
    lengths = numpy.append(sequences.lengths, 30)
    plan = plan_windows(lengths, PackingConfig(window_length=64), order=numpy.array([len(lengths) - 1]))
    with pytest.raises(IndexError, match="of a protein that is not there"):
        build_window(plan, 0, sequences)
