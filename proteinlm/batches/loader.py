"""Masked batches of windows, as a training step takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from proteinlm.batches.epochs import ClusterDraw
from proteinlm.batches.masking import NOT_CHOSEN, MaskingConfig, mask_tokens
from proteinlm.batches.packing import PackingConfig, Sequences, Window, build_window
from proteinlm.batches.sampler import WindowKey, WindowSampler
from proteinlm.randomness import stream, stream_key
from proteinlm.sequence.alphabet import UNK


@dataclass(frozen=True)
class MaskedBatch:
    """Windows with some residues hidden.

    Attributes:
        tokens_BL: int64, corrupted.
        targets_BL: int64, the residue to predict, -100 where there is none.
        positions_BL: int64.
        key_mask_BL: bool, False at padding.
        cu_seqlens: int32 (S + 1,), bounds of the segments over the flattened B * L positions.
        window_keys: a 63-bit key for each window, for streams such as dropout.
        num_residues: residues in the batch, special tokens and padding left out.
    """

    tokens_BL: Tensor
    targets_BL: Tensor
    positions_BL: Tensor
    key_mask_BL: Tensor
    cu_seqlens: Tensor
    window_keys: tuple[int, ...]
    num_residues: int

    @property
    def num_targets(self) -> int:
        """Number of residues to predict."""
        return int((self.targets_BL != NOT_CHOSEN).sum())

    def to(self, device: torch.device) -> MaskedBatch:
        """Return the batch on another device."""
        names = ("tokens_BL", "targets_BL", "positions_BL", "key_mask_BL", "cu_seqlens")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return dataclasses.replace(self, **moved)


class BatchLoader:
    """Makes the micro-batches of one process, step after step.

    A step takes ``windows_per_step`` windows over all processes; which process gets which of them
    changes neither a window's masking nor its dropout.

    Args:
        sequences: the proteins.
        lengths: int64 (N,), their residues.
        packing: how they become windows.
        masking: what is hidden.
        seed: of the run.
        windows_per_step: over all processes.
        windows_per_micro_batch: on one process at a time.
        rank: number of this process.
        world_size: number of processes.
        start: the first window of the next step.
        clusters: draws the proteins of an epoch; it takes all if None.
    """

    def __init__(  # noqa: PLR0913  (each is a fact of the run; a bundle would only rename them)
        self,
        sequences: Sequences,
        lengths: numpy.typing.NDArray[numpy.int64],
        *,
        packing: PackingConfig,
        masking: MaskingConfig,
        seed: int,
        windows_per_step: int,
        windows_per_micro_batch: int,
        rank: int = 0,
        world_size: int = 1,
        start: WindowKey = WindowKey(0, 0),  # noqa: B008  (frozen)
        clusters: ClusterDraw | None = None,
    ) -> None:
        self._sequences = sequences
        self._masking = masking
        self._seed = seed
        self._windows_per_step = windows_per_step
        self._windows_per_micro_batch = windows_per_micro_batch
        self._rank = rank
        self._world_size = world_size
        self.sampler = WindowSampler(lengths, packing, seed=seed, start=start, clusters=clusters)

    def next_step(self) -> list[MaskedBatch]:
        """Return this process's micro-batches of the next step."""
        taken = self.sampler.take(self._windows_per_step)
        mine = taken[self._rank :: self._world_size]
        windows = [(key, build_window(plan, key.window, self._sequences)) for key, plan in mine]
        size = self._windows_per_micro_batch
        return [self._masked(windows[first : first + size]) for first in range(0, len(windows), size)]

    def _masked(self, windows: Sequence[tuple[WindowKey, Window]]) -> MaskedBatch:
        corrupted, targets = [], []
        for key, window in windows:
            generator = stream(self._seed, "masking", key.epoch, key.window)
            tokens, target = mask_tokens(window.tokens, self._masking, generator)
            corrupted.append(tokens)
            targets.append(target)
        keys = tuple(stream_key(self._seed, "window", key.epoch, key.window) for key, _ in windows)
        return collate([window for _, window in windows], corrupted, targets, keys)


def collate(
    windows: Sequence[Window],
    corrupted: Sequence[numpy.typing.NDArray[numpy.uint8]],
    targets: Sequence[numpy.typing.NDArray[numpy.int64]],
    window_keys: tuple[int, ...] = (),
) -> MaskedBatch:
    """Return windows of one length as a batch, with what the model sees and what it must predict."""
    length = len(windows[0].tokens)
    bounds = [window.bounds[1:] + row * length for row, window in enumerate(windows)]
    num_tokens = numpy.array([window.num_tokens for window in windows])
    key_mask = numpy.arange(length)[None] < num_tokens[:, None]
    # residues come after <cls>, <pad>, <eos> and <unk>
    num_residues = sum(int((window.tokens > UNK).sum()) for window in windows)
    return MaskedBatch(
        tokens_BL=torch.from_numpy(numpy.stack(corrupted).astype(numpy.int64)),
        targets_BL=torch.from_numpy(numpy.stack(targets)),
        positions_BL=torch.from_numpy(numpy.stack([window.positions for window in windows])),
        key_mask_BL=torch.from_numpy(key_mask),
        cu_seqlens=torch.from_numpy(numpy.concatenate(([0], *bounds)).astype(numpy.int32)),
        window_keys=window_keys,
        num_residues=num_residues,
    )
