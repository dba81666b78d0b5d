"""What an epoch consists of when it draws one member of every cluster."""

from __future__ import annotations

import math

import numpy
import pytest

from proteinlm.batches import epochs
from proteinlm.batches.epochs import ClusterDraw
from proteinlm.batches.packing import PackingConfig, build_window, plan_windows
from proteinlm.batches.sampler import WindowKey, WindowSampler
from proteinlm.randomness import stream
from tests.batches.test_packing import Proteins

# 40 proteins in 9 clusters, whose numbers are any of 64 bits
NAMES = numpy.random.default_rng(1).integers(0, 2**64, size=9, dtype=numpy.uint64)
CLUSTERS = NAMES[numpy.random.default_rng(2).integers(0, 9, size=40)]
LENGTHS = numpy.random.default_rng(5).integers(1, 60, size=len(CLUSTERS)).tolist()


def _sampler(**settings):
    lengths = numpy.array(LENGTHS)
    return WindowSampler(lengths, PackingConfig(window_length=64), **{"seed": 7} | settings)


def _proteins_of(plan):
    return sorted({int(number) for number in plan.sequence})


def test_an_epoch_has_one_member_of_every_cluster():
    draw = ClusterDraw(CLUSTERS, seed=0)
    assert draw.num_clusters == len(set(CLUSTERS.tolist()))
    for epoch in range(20):
        assert sorted(CLUSTERS[draw.members(epoch)].tolist()) == sorted(set(CLUSTERS.tolist()))


def test_members_of_a_cluster_are_drawn_equally_often():
    draw = ClusterDraw(CLUSTERS, seed=3)
    num_epochs = 4000
    times = sum(numpy.bincount(draw.members(epoch), minlength=len(CLUSTERS)) for epoch in range(num_epochs))
    sizes = numpy.array([numpy.count_nonzero(cluster == CLUSTERS) for cluster in CLUSTERS])
    share = 1 / sizes
    # of a binomial count; clusters of one member are drawn every time
    error = numpy.sqrt(num_epochs * share * (1 - share))
    assert sizes.max() > 5
    assert (numpy.abs(times - num_epochs * share) <= 4 * error).all()


def test_draws_of_two_clusters_are_independent():
    clusters = numpy.array([1, 1, 2, 2], dtype=numpy.uint64)
    draw = ClusterDraw(clusters, seed=4)
    num_epochs = 4000
    both = numpy.array([draw.members(epoch) for epoch in range(num_epochs)]) % 2
    agree = int((both[:, 0] == both[:, 1]).sum())
    assert abs(agree - num_epochs / 2) <= 4 * math.sqrt(num_epochs / 4)


def test_a_draw_depends_on_seed_and_epoch_alone():
    draw, again = ClusterDraw(CLUSTERS, seed=0), ClusterDraw(CLUSTERS, seed=0)
    later = again.members(5)
    assert (draw.members(4) != later).any()
    assert (draw.members(5) == later).all()
    assert (ClusterDraw(CLUSTERS, seed=1).members(5) != later).any()


@pytest.mark.parametrize("block", [1, 3, 40, 41])
def test_blocks_change_no_draw(block, monkeypatch):
    whole = ClusterDraw(CLUSTERS, seed=0).members(0)
    monkeypatch.setattr(epochs, "_BLOCK", block)
    assert ClusterDraw(CLUSTERS, seed=0).members(0).tolist() == whole.tolist()


@pytest.mark.parametrize("clusters", [[], [7], [7, 7, 7], [2**64 - 1, 0]], ids=["none", "one", "one of three", "two"])
def test_few_clusters_are_drawn_too(clusters):
    numbers = numpy.array(clusters, dtype=numpy.uint64)
    drawn = numbers[ClusterDraw(numbers, seed=0).members(0)]
    assert drawn.tolist() == sorted(set(clusters))


@pytest.mark.parametrize("epoch", [0, 1, 6])
def test_windows_of_an_epoch_hold_the_drawn_proteins_and_no_other(epoch):
    draw, proteins = ClusterDraw(CLUSTERS, seed=7), Proteins(LENGTHS)
    plan, drawn = _sampler(clusters=draw, start=WindowKey(epoch, 0)).plan, draw.members(epoch)
    assert _proteins_of(plan) == sorted(drawn.tolist())
    windows = [build_window(plan, window, proteins) for window in range(plan.num_windows)]
    # a protein has <cls> and <eos>
    assert sum(window.num_tokens for window in windows) == sum(LENGTHS[number] + 2 for number in drawn)


def test_epochs_draw_other_members():
    clusters = ClusterDraw(CLUSTERS, seed=7)
    plans = [_sampler(clusters=clusters, start=WindowKey(epoch, 0)).plan for epoch in range(3)]
    assert len({tuple(_proteins_of(plan)) for plan in plans}) == 3


def test_sampler_goes_on_in_any_epoch():
    def keys(sampler, count):
        return [(key, tuple(plan.pieces(key.window))) for key, plan in sampler.take(count)]

    whole = _sampler(clusters=ClusterDraw(CLUSTERS, seed=7))
    before, expected = keys(whole, 13), keys(whole, 30)
    assert before[-1][0].epoch > 0
    first = _sampler(clusters=ClusterDraw(CLUSTERS, seed=7))
    first.take(13)
    assert keys(_sampler(clusters=ClusterDraw(CLUSTERS, seed=7), start=first.next), 30) == expected


@pytest.mark.parametrize("context", ["isolated", "joint"])
def test_without_clusters_an_epoch_takes_all_proteins_in_the_order_that_it_always_had(context):
    lengths, packing = numpy.array(LENGTHS), PackingConfig(window_length=64, context=context)
    sampler = WindowSampler(lengths, packing, seed=7, start=WindowKey(2, 0))
    # runs of earlier versions go on by it
    generator = stream(7, "windows", 2)
    plan = plan_windows(lengths, packing, order=generator.permutation(len(lengths)))
    windows = generator.permutation(plan.num_windows)
    assert [list(plan.pieces(w)) for w in windows] == [
        list(found.pieces(key.window)) for key, found in sampler.take(plan.num_windows)
    ]
