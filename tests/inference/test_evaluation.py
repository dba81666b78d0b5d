"""Scores on hidden residues."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from proteinlm.attention import FavorConfig, SoftmaxConfig
from proteinlm.batches.masking import NOT_CHOSEN
from proteinlm.batches.packing import PackingConfig
from proteinlm.inference.evaluation import MaskedProteins, evaluate, unigram_score
from proteinlm.model import MaskedLM, ModelConfig
from proteinlm.sequence.alphabet import MASK


class Proteins:
    def __init__(self, lengths):
        generator = numpy.random.default_rng(0)
        self.arrays = [generator.integers(4, 24, size=n).astype(numpy.uint8) for n in lengths]
        self.lengths = numpy.array(lengths)

    def __len__(self):
        return len(self.arrays)

    def tokens(self, index):
        return self.arrays[index]

    def identifier(self, index):
        return f"protein{index}"


@pytest.fixture
def proteins():
    return Proteins([30, 7, 120, 1, 55])


@pytest.fixture(params=["softmax", "favor"])
def model(request):
    attention = {"softmax": SoftmaxConfig(), "favor": FavorConfig(num_random_features=16)}[request.param]
    settings = ModelConfig(num_layers=1, hidden_size=16, num_heads=2, feed_forward_size=16, attention=attention)
    return MaskedLM(settings, seed=1).double()


def test_score_equals_one_made_protein_by_protein(proteins, model):
    masked = MaskedProteins(proteins, seed=3)
    score, counts = evaluate(model, masked, PackingConfig(window_length=256))
    losses, correct = [], 0
    for index in range(len(proteins)):
        shown, original = masked.tokens(index), proteins.tokens(index)
        window = torch.tensor([[0, *shown.tolist(), 2]])
        log_probabilities = model(window)[0, 1:-1].log_softmax(-1)
        for place in numpy.flatnonzero(shown == MASK):
            losses.append(-log_probabilities[place, int(original[place])].item())
            correct += int(log_probabilities[place].argmax()) == int(original[place])
    assert score.num_targets == len(losses) == counts.sum()
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-10)
    assert score.accuracy == pytest.approx(correct / len(losses))


def test_every_hidden_residue_is_shown_as_mask(proteins):
    masked = MaskedProteins(proteins, seed=3)
    for batch, _ in masked.batches(PackingConfig(window_length=64)):
        is_target = batch.targets_BL != NOT_CHOSEN
        assert torch.equal(is_target, batch.tokens_BL == MASK)


@pytest.mark.parametrize("context", ["isolated", "joint"])
def test_targets_do_not_depend_on_packing(proteins, context):
    masked = MaskedProteins(proteins, seed=3)

    def targets(window_length):
        batches = masked.batches(PackingConfig(window_length=window_length, context=context))
        return sorted(t for batch, _ in batches for t in batch.targets_BL[batch.targets_BL != NOT_CHOSEN].tolist())

    assert targets(32) == targets(512)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_windows_and_get_equally_many(proteins, world_size):
    masked = MaskedProteins(proteins, seed=3)
    packing = PackingConfig(window_length=64)
    whole = [batch for batch, _ in masked.batches(packing)]
    parts = [list(masked.batches(packing, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    counted = [batch for rounds in zip(*parts, strict=True) for batch, counts in rounds if counts]
    assert len(counted) == len(whole)
    assert all(torch.equal(a.targets_BL, b.targets_BL) for a, b in zip(counted, whole, strict=True))


def test_hidden_residues_of_a_protein_do_not_depend_on_the_others(proteins):
    alone = MaskedProteins(proteins, seed=3, chosen=numpy.array([2]))
    assert (alone.tokens(0) == MaskedProteins(proteins, seed=3).tokens(2)).all()


def test_evaluation_restores_the_mode_of_the_model(proteins, model):
    model.train()
    evaluate(model, MaskedProteins(proteins, seed=3), PackingConfig(window_length=128))
    assert model.training


def test_unigram_loss_is_the_cross_entropy_of_the_frequencies():
    counts = [0] * 33
    counts[4], counts[5] = 75, 25
    targets = numpy.zeros(33, dtype=numpy.int64)
    targets[4], targets[5] = 3, 1
    score = unigram_score(counts, targets)
    # 31 tokens that never occur take half an occurrence each
    total = 100 + 31 / 2
    assert score.loss == pytest.approx(-(3 * math.log(75 / total) + math.log(25 / total)) / 4)
    assert score.accuracy == 0.75


def test_unigram_of_uniform_residues_has_perplexity_twenty():
    counts = [0] * 4 + [10**9] * 20 + [0] * 9
    targets = numpy.array([0] * 4 + [1] * 20 + [0] * 9)
    assert unigram_score(counts, targets).perplexity == pytest.approx(20, rel=1e-6)
