"""Masking residues."""

from __future__ import annotations

import math

import numpy
import pytest

from proteinlm.batches.masking import NOT_CHOSEN, MaskingConfig, evaluation_choice, mask_tokens
from proteinlm.sequence.alphabet import AMBIGUOUS, CLS, EOS, MASK, PAD, STANDARD, encode


@pytest.fixture
def residues():
    return numpy.random.default_rng(0).choice(STANDARD, size=100_000)


def _close(count, total, share):
    # four standard deviations of a binomial share
    return abs(count / total - share) < 4 * math.sqrt(share * (1 - share) / total)


def test_shares_are_those_asked_for(residues):
    corrupted, targets = mask_tokens(residues, MaskingConfig(), numpy.random.default_rng(1))
    chosen = targets != NOT_CHOSEN
    count = int(chosen.sum())
    assert _close(count, len(residues), 0.15)
    assert _close(int((corrupted[chosen] == MASK).sum()), count, 0.8)
    # a random residue is the old one in one draw of twenty
    assert _close(int((corrupted[chosen] == residues[chosen]).sum()), count, 0.1 + 0.1 / 20)


def test_targets_are_the_original_residues(residues):
    _, targets = mask_tokens(residues, MaskingConfig(), numpy.random.default_rng(1))
    chosen = targets != NOT_CHOSEN
    assert (targets[chosen] == residues[chosen]).all()


def test_what_is_not_chosen_is_shown_as_it_is(residues):
    corrupted, targets = mask_tokens(residues, MaskingConfig(), numpy.random.default_rng(1))
    kept = targets == NOT_CHOSEN
    assert (corrupted[kept] == residues[kept]).all()


def test_special_tokens_gaps_and_x_are_never_chosen():
    tokens = numpy.array([CLS, EOS, PAD, MASK, AMBIGUOUS, *encode(b".-").tokens] * 2000, dtype=numpy.uint8)
    corrupted, targets = mask_tokens(tokens, MaskingConfig(rate=0.9), numpy.random.default_rng(1))
    assert (targets == NOT_CHOSEN).all()
    assert (corrupted == tokens).all()


def test_random_residues_are_standard_ones(residues):
    settings = MaskingConfig(mask_share=0.0, random_share=1.0)
    corrupted, _ = mask_tokens(residues, settings, numpy.random.default_rng(1))
    assert set(corrupted.tolist()) == set(STANDARD.tolist())


def test_one_residue_can_be_masked():
    tokens, targets = mask_tokens(STANDARD[:1], MaskingConfig(), numpy.random.default_rng(1))
    assert tokens.shape == targets.shape == (1,)


def test_evaluation_hides_a_fixed_share_and_at_least_one(residues):
    choose = lambda tokens: evaluation_choice(tokens, rate=0.15, generator=numpy.random.default_rng(2))  # noqa: E731
    assert choose(residues[:1000]).sum() == 150
    assert choose(residues[:2]).sum() == 1
    assert choose(encode(b"XXXX").tokens).sum() == 0


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"rate": 1.0}, {"mask_share": 0.9, "random_share": 0.2}])
def test_impossible_shares_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        MaskingConfig(**settings)
