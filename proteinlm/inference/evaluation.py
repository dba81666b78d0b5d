"""How well a model predicts hidden residues, beside what their frequencies alone predict.

Every chosen residue is shown as ``<mask>``: with the 80/10/10 corruption of training, a model that
copies what it sees already looks good. Which residues are chosen depends on the seed and the
protein only, so that models, steps and mechanisms answer the same questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from proteinlm.batches.loader import MaskedBatch, collate
from proteinlm.batches.masking import NOT_CHOSEN, evaluation_choice, targets_at
from proteinlm.batches.packing import PackingConfig, WindowPlan, build_window, plan_windows
from proteinlm.model import MaskedLM
from proteinlm.model.chunking import in_chunks
from proteinlm.progress import SILENT, Progress
from proteinlm.randomness import stream
from proteinlm.sequence.alphabet import MASK, VOCAB_SIZE

# name of the training split's token counts among the metadata of a checkpoint
TOKEN_COUNTS = "training_token_counts"


class Proteins(Protocol):
    """Encoded proteins with names, as a split of a corpus offers them."""

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Return the residues of each protein, int64 (N,)."""

    def __len__(self) -> int:
        """Return the number of proteins."""

    def tokens(self, index: int) -> NDArray[numpy.uint8]:
        """Return the residues of a protein as token ids."""

    def identifier(self, index: int) -> str:
        """Return the name of a protein."""


@dataclass(frozen=True)
class MaskedScore:
    """Figures over all targets of a set.

    Attributes:
        num_targets: residues that were predicted.
        loss: cross-entropy in nats per target; NaN if there is no target.
        accuracy: share of the targets whose likeliest residue was right; NaN if there is no target.
    """

    num_targets: int
    loss: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """exp(loss): the number of equally likely residues that would be as hard to tell apart."""
        return perplexity_of(self.loss)


def perplexity_of(loss: float) -> float:
    """Return exp(loss), infinity where that is beyond a float and NaN for NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class MaskedProteins:
    """Proteins with the residues that are evaluated shown as ``<mask>``.

    Args:
        proteins: the proteins.
        chosen: numbers of those to use, in order; all if None.
        rate: share of the residues of each that are hidden.
        seed: of the choice.
    """

    def __init__(
        self, proteins: Proteins, *, seed: int, rate: float = 0.15, chosen: NDArray[numpy.int64] | None = None
    ) -> None:
        self._proteins = proteins
        self._rate = rate
        self._seed = seed
        self.chosen = numpy.arange(len(proteins)) if chosen is None else chosen

    @property
    def lengths(self) -> NDArray[numpy.int64]:
        """Return the residues of each chosen protein, int64 (N,)."""
        return self._proteins.lengths[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def original(self, index: int) -> NDArray[numpy.uint8]:
        """Return the residues of a protein."""
        return self._proteins.tokens(int(self.chosen[index]))

    def tokens(self, index: int) -> NDArray[numpy.uint8]:
        """Return the residues of a protein, the hidden ones as ``<mask>``."""
        number = int(self.chosen[index])
        residues = self._proteins.tokens(number)
        generator = stream(self._seed, "evaluation", self._proteins.identifier(number))
        is_hidden = evaluation_choice(residues, rate=self._rate, generator=generator)
        return numpy.where(is_hidden, numpy.uint8(MASK), residues)

    def batches(
        self, packing: PackingConfig, *, windows_per_batch: int = 1, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[MaskedBatch, bool]]:
        """Yield one process's part of the windows, in the order in which the proteins stand.

        Every process gets as many batches as any other, since a model that is parted between
        processes waits for all of them. Beside each batch stands whether it counts; those that fill
        up the last round do not.
        """
        plan = plan_windows(self.lengths, packing)
        num_batches = -(-plan.num_windows // windows_per_batch)
        for first in range(0, num_batches, world_size):
            counts = first + rank < num_batches
            begin = (first + rank if counts else first) * windows_per_batch
            numbers = range(begin, min(begin + windows_per_batch, plan.num_windows))
            yield self._batch(plan, numbers), counts

    def _batch(self, plan: WindowPlan, numbers: range) -> MaskedBatch:
        originals = _Originals(self)
        shown = [build_window(plan, number, self) for number in numbers]
        asked = [build_window(plan, number, originals).tokens for number in numbers]
        targets = [
            targets_at((window.tokens == MASK) & (tokens != MASK), tokens)
            for window, tokens in zip(shown, asked, strict=True)
        ]
        return collate(shown, [window.tokens for window in shown], targets)


class _Originals:
    """The same proteins with nothing hidden."""

    def __init__(self, masked: MaskedProteins) -> None:
        self._masked = masked

    def __len__(self) -> int:
        return len(self._masked)

    def tokens(self, index: int) -> NDArray[numpy.uint8]:
        return self._masked.original(index)


def masked_loss(
    model: MaskedLM, batch: MaskedBatch, *, dropout_keys_B: Sequence[int] | None = None, loss_chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy in nats over a batch's targets, and the number of right answers.

    Logits are computed at the targets only, and the loss in float32 or better.

    Args:
        model: the model.
        batch: with targets.
        dropout_keys_B: one key a window, in training mode.
        loss_chunk: positions of each window whose logits and loss are computed at a time, and again in the
            backward pass; 0: all. Positions and not targets, so that all processes call the head equally often:
            those of ZeRO 3 wait for each other there.
    """
    hidden_BLD = model.encode(
        batch.tokens_BL,
        positions_BL=batch.positions_BL,
        key_mask_BL=batch.key_mask_BL,
        cu_seqlens=batch.cu_seqlens,
        dropout_keys_B=dropout_keys_B,
    )
    head = model.masked_lm_head

    def answer(hidden_BCD: Tensor, targets_BC: Tensor, embedding_VD: Tensor) -> tuple[Tensor, Tensor]:
        is_target_BC = targets_BC != NOT_CHOSEN
        targets = targets_BC[is_target_BC]
        logits = head(hidden_BCD[is_target_BC], embedding_VD)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss_BC = logits.new_zeros(targets_BC.shape)
        loss_BC = loss_BC.masked_scatter(is_target_BC, functional.cross_entropy(logits, targets, reduction="none"))
        is_right_BC = torch.zeros_like(is_target_BC).masked_scatter(is_target_BC, logits.argmax(dim=-1) == targets)
        return loss_BC, is_right_BC

    # the embedding gets a gradient as input of the model too: as an argument here, it adds them up once
    cut, whole = (hidden_BLD, batch.targets_BL), (model.encoder.embedding.weight,)
    if not 0 < loss_chunk < batch.targets_BL.shape[1]:
        loss_BL, is_right_BL = answer(*cut, *whole)
    else:
        loss_BL, is_right_BL = in_chunks(answer, cut, whole, chunk_length=loss_chunk, dim=1, modules=[head])
    return loss_BL.sum(), is_right_BL.sum()


@dataclass
class AnswerSum:
    """Answers added up: loss in nats, right answers, and how often each residue was asked for."""

    loss: float
    num_correct: int
    target_counts: NDArray[numpy.int64]

    def score(self) -> MaskedScore:
        """Return the figures over everything added."""
        count = int(self.target_counts.sum())
        if not count:
            return MaskedScore(0, math.nan, math.nan)
        return MaskedScore(count, self.loss / count, self.num_correct / count)


def add_answers(
    batches: Iterable[tuple[MaskedBatch, bool]], answer: Callable[[MaskedBatch], tuple[Tensor, Tensor]]
) -> AnswerSum:
    """Return the sums of what ``answer`` says of the batches that count.

    Args:
        batches: of ``MaskedProteins.batches``.
        answer: gives a batch's summed loss and right answers; asked for every batch.
    """
    total = AnswerSum(0.0, 0, numpy.zeros(VOCAB_SIZE, dtype=numpy.int64))
    for batch, counts in batches:
        loss, num_correct = answer(batch)
        if counts:
            total.loss += float(loss)
            total.num_correct += int(num_correct)
            targets = batch.targets_BL[batch.targets_BL != NOT_CHOSEN].numpy()
            total.target_counts += numpy.bincount(targets, minlength=VOCAB_SIZE)
    return total


@torch.no_grad()
def evaluate(
    model: MaskedLM,
    masked: MaskedProteins,
    packing: PackingConfig,
    *,
    windows_per_batch: int = 1,
    progress: Progress = SILENT,
    task: str = "evaluate",
) -> tuple[MaskedScore, NDArray[numpy.int64]]:
    """Return a model's score on hidden residues, and how often each residue was asked for.

    Args:
        model: is put into evaluation mode for the while.
        masked: proteins with hidden residues.
        packing: window length and context, those of the training.
        windows_per_batch: windows at a time.
        progress: is told the residues done, shown ones included.
        task: how it calls them.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device

    def answer(batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        found = masked_loss(model, batch.to(device))
        progress.advance(batch.num_residues)
        return found

    progress.start(task, int(masked.lengths.sum()), "residues")
    try:
        total = add_answers(masked.batches(packing, windows_per_batch=windows_per_batch), answer)
    finally:
        progress.finish()
        model.train(was_training)
    return total.score(), total.target_counts


def unigram_score(token_counts: Sequence[int], target_counts: NDArray[numpy.int64]) -> MaskedScore:
    """Return what a model scores that knows nothing but the frequencies of the residues.

    Args:
        token_counts: how often each token occurs in the training split, (V,).
        target_counts: how often each is asked for, (V,).

    Source: the "empirical baseline" of Choromanski et al., arXiv:2009.14794, section 4.4.
    """
    counts = numpy.maximum(numpy.asarray(token_counts, dtype=numpy.float64), 0.5)
    log_frequencies = numpy.log(counts / counts.sum())
    count = int(target_counts.sum())
    if not count:
        return MaskedScore(0, math.nan, math.nan)
    loss = -float((log_frequencies * target_counts).sum()) / count
    return MaskedScore(count, loss, int(target_counts[counts.argmax()]) / count)
