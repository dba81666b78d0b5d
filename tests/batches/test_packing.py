"""Packing proteins into windows."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.batches.packing import PackingConfig, build_window, plan_windows
from proteinlm.sequence.alphabet import CLS, EOS, PAD, encode
from proteinlm.sequence.fasta import read_fasta


class Proteins:
    """Proteins whose residues tell where they come from."""

    def __init__(self, lengths):
        generator = numpy.random.default_rng(0)
        self.arrays = [generator.integers(4, 24, size=n).astype(numpy.uint8) for n in lengths]
        self.lengths = numpy.array(lengths, dtype=numpy.int64)

    def __len__(self):
        return len(self.arrays)

    def tokens(self, index):
        return self.arrays[index]


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60)


@pytest.mark.parametrize("window_length", [-1, 7, 1 << 31])
def test_windows_that_packing_cannot_fill_are_refused(window_length):
    with pytest.raises(ValueError, match="expected 8 to 2,147,483,647 positions"):
        PackingConfig(window_length=window_length)


# the first call compiles
@settings(deadline=None)
@given(lengths, st.integers(8, 40), st.sampled_from(["isolated", "joint"]))
def test_every_residue_is_in_exactly_one_window_in_order(lengths, window_length, context):
    proteins = Proteins(lengths)
    plan = plan_windows(proteins.lengths, PackingConfig(window_length=window_length, context=context))
    rebuilt = {index: [] for index in range(len(lengths))}
    for window in range(plan.num_windows):
        tokens = build_window(plan, window, proteins).tokens
        place = 0
        for index, begin, end in plan.pieces(window):
            rebuilt[index].append((begin, tokens[place : place + end - begin]))
            place += end - begin
    first = [CLS] if context == "isolated" else []
    for index, residues in enumerate(proteins.arrays):
        pieces = [piece for _, piece in sorted(rebuilt[index], key=lambda item: item[0])]
        assert numpy.concatenate(pieces).tolist() == [*first, *residues.tolist(), EOS]


@settings(deadline=None)
@given(lengths, st.integers(8, 40))
def test_isolated_proteins_are_cut_only_when_longer_than_a_window(lengths, window_length):
    plan = plan_windows(numpy.array(lengths), PackingConfig(window_length=window_length))
    num_pieces = numpy.bincount(plan.sequence, minlength=len(lengths))
    assert num_pieces.tolist() == [-(-(length + 2) // window_length) for length in lengths]


@settings(deadline=None)
@given(lengths, st.integers(8, 40))
def test_joint_windows_are_full_but_the_last(lengths, window_length):
    proteins = Proteins(lengths)
    plan = plan_windows(proteins.lengths, PackingConfig(window_length=window_length, context="joint"))
    filled = [build_window(plan, window, proteins).num_tokens for window in range(plan.num_windows)]
    assert filled[:-1] == [window_length] * (plan.num_windows - 1)
    assert sum(filled) == sum(lengths) + len(lengths)


def test_positions_go_on_in_the_pieces_of_a_long_protein():
    proteins = Proteins([30])
    plan = plan_windows(proteins.lengths, PackingConfig(window_length=16))
    windows = [build_window(plan, window, proteins) for window in range(plan.num_windows)]
    assert windows[0].positions.tolist() == list(range(16))
    assert windows[1].positions.tolist() == list(range(16, 32))


def test_positions_restart_with_every_isolated_protein():
    proteins = Proteins([3, 4])
    plan = plan_windows(proteins.lengths, PackingConfig(window_length=16))
    window = build_window(plan, 0, proteins)
    assert window.positions[:11].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert window.bounds.tolist() == [0, 5, 11, 16]


def test_joint_window_is_one_segment_without_cls():
    proteins = Proteins([3, 4])
    plan = plan_windows(proteins.lengths, PackingConfig(window_length=16, context="joint"))
    window = build_window(plan, 0, proteins)
    assert CLS not in window.tokens
    assert window.bounds.tolist() == [0, 9, 16]
    assert window.positions[:9].tolist() == list(range(9))


def test_padding_is_the_pad_token_and_only_at_the_end():
    proteins = Proteins([3])
    window = build_window(plan_windows(proteins.lengths, PackingConfig(window_length=8)), 0, proteins)
    assert window.tokens.tolist() == [CLS, *proteins.arrays[0].tolist(), EOS, PAD, PAD, PAD]


def test_no_proteins_make_no_windows():
    for context in ("isolated", "joint"):
        plan = plan_windows(numpy.zeros(0, dtype=numpy.int64), PackingConfig(context=context))
        assert plan.num_windows == 0


@pytest.fixture(scope="module")
def real_proteins(sample):
    """The proteins of the sample, in a random order."""
    records = read_fasta([sample / "uniprotkb_sample.fasta.xz"])
    proteins = Proteins([])
    proteins.arrays = [encode(record.residues).tokens for record in records]
    proteins.lengths = numpy.array([len(tokens) for tokens in proteins.arrays])
    return proteins


@pytest.mark.parametrize(("context", "least_fill"), [("isolated", 0.98), ("joint", 0.998)])
def test_windows_of_8192_are_filled_by_real_proteins(real_proteins, context, least_fill):
    order = numpy.random.default_rng(0).permutation(len(real_proteins))
    plan = plan_windows(real_proteins.lengths, PackingConfig(context=context), order=order)
    assert plan.fill >= least_fill


@pytest.mark.parametrize("context", ["isolated", "joint"])
def test_windows_hold_every_residue_of_the_sample(real_proteins, context):
    plan = plan_windows(real_proteins.lengths, PackingConfig(context=context))
    windows = (build_window(plan, window, real_proteins) for window in range(plan.num_windows))
    # residues come after the four special tokens of the beginning
    counts = sum(numpy.bincount(window.tokens, minlength=33) for window in windows)
    expected = numpy.bincount(numpy.concatenate(real_proteins.arrays), minlength=33)
    assert (counts[4:] == expected[4:]).all()
    assert counts[EOS] == len(real_proteins)
