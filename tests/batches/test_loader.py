"""Batches of a step, on one process or many."""

from __future__ import annotations

import itertools

import numpy
import torch

from proteinlm.batches.epochs import ClusterDraw
from proteinlm.batches.loader import BatchLoader
from proteinlm.batches.masking import MaskingConfig
from proteinlm.batches.packing import PackingConfig
from proteinlm.batches.sampler import WindowKey
from proteinlm.sequence.alphabet import PAD
from tests.batches.test_packing import Proteins

LENGTHS = numpy.random.default_rng(5).integers(1, 60, size=50).tolist()


def _loader(**settings):
    proteins = Proteins(LENGTHS)
    defaults = {"windows_per_step": 4, "windows_per_micro_batch": 2, "seed": 7}
    return BatchLoader(
        proteins,
        proteins.lengths,
        packing=PackingConfig(window_length=64),
        masking=MaskingConfig(),
        **defaults | settings,
    )


def _windows(batches):
    return {
        key: (batch.tokens_BL[row], batch.targets_BL[row])
        for batch in batches
        for row, key in enumerate(batch.window_keys)
    }


def test_processes_share_a_step_without_changing_a_window():
    alone = _windows(_loader().next_step())
    shared = {}
    for rank in range(2):
        shared |= _windows(_loader(rank=rank, world_size=2, windows_per_micro_batch=1).next_step())
    assert alone.keys() == shared.keys()
    for key, (tokens, targets) in alone.items():
        assert torch.equal(tokens, shared[key][0])
        assert torch.equal(targets, shared[key][1])


def test_loader_goes_on_from_any_window():
    loader, again = _loader(), _loader()
    steps = [_windows(loader.next_step()) for _ in range(12)]
    for _ in range(5):
        again.next_step()
    resumed = _loader(start=again.sampler.next)
    for step in steps[5:]:
        windows = _windows(resumed.next_step())
        assert windows.keys() == step.keys()
        for key, (tokens, targets) in step.items():
            assert torch.equal(tokens, windows[key][0])
            assert torch.equal(targets, windows[key][1])


def test_an_epoch_takes_every_window_once_and_the_next_packs_anew():
    loader = _loader(windows_per_step=1)
    keys = []
    while loader.sampler.next.epoch == 0:
        keys += [loader.sampler.take(1)[0][0]]
    first = [key.window for key in keys if key.epoch == 0]
    assert sorted(first) == list(range(len(first)))
    assert keys[-1] == WindowKey(1, keys[-1].window)


def test_masking_differs_between_epochs():
    first = _loader(start=WindowKey(0, 0)).next_step()[0]
    second = _loader(start=WindowKey(1, 0)).next_step()[0]
    assert not torch.equal(first.targets_BL, second.targets_BL)


def test_padding_is_hidden_and_a_segment_of_its_own():
    batch = _loader().next_step()[0]
    assert torch.equal(batch.key_mask_BL, batch.tokens_BL != PAD)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == batch.tokens_BL.numel()
    assert 64 in bounds
    mask = batch.key_mask_BL.flatten()
    assert all(len(mask[a:b].unique()) == 1 for a, b in itertools.pairwise(bounds))


def test_residues_are_counted_without_special_tokens():
    loader = _loader(windows_per_step=1, windows_per_micro_batch=1)
    total = 0
    windows = loader.sampler.plan.num_windows
    for _ in range(windows):
        total += sum(batch.num_residues for batch in loader.next_step())
    assert total == sum(LENGTHS)


def test_processes_share_a_step_of_drawn_cluster_members_too():
    names = numpy.random.default_rng(2).integers(0, 2**64, size=20, dtype=numpy.uint64)
    clusters = names[numpy.random.default_rng(3).integers(0, 20, size=len(LENGTHS))]

    def steps(**settings):
        # each process draws for itself
        loader = _loader(clusters=ClusterDraw(clusters, seed=7), **settings)
        return [_windows(loader.next_step()) for _ in range(8)]

    alone, *ranks = steps(), *(steps(rank=rank, world_size=8, windows_per_step=4) for rank in range(8))
    for number, step in enumerate(alone):
        shared = {key: window for rank in ranks for key, window in rank[number].items()}
        assert step.keys() == shared.keys()
        assert all(torch.equal(tokens, shared[key][0]) for key, (tokens, _) in step.items())
