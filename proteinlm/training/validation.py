"""Validation during training: the same hidden residues at every step, on all processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy

from proteinlm.attention import listed_name
from proteinlm.batches.packing import PackingConfig
from proteinlm.inference.evaluation import (
    AnswerSum,
    MaskedProteins,
    MaskedScore,
    Proteins,
    add_answers,
    unigram_score,
)
from proteinlm.randomness import stream
from proteinlm.training.interface import TrainingEngine


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """How often and on how much a run is validated."""

    # optimiser steps between two validations; the first and the last step are always validated
    # when: validation takes too much of the time, or the curve is too coarse
    interval: int = 1_000
    # proteins of each split, drawn once; 0 takes all
    # when: figures should be surer (more) or cheaper (fewer)
    num_proteins: int = 2_000
    # share of the residues of each protein that are hidden, all of them shown as <mask>
    # when: figures are compared with those of another program
    rate: float = 0.15

    def __post_init__(self) -> None:
        if self.interval < 1 or self.num_proteins < 0:
            raise ValueError(
                f"interval is {self.interval} and num_proteins {self.num_proteins}; expected 1 or more, and 0 or more"
            )
        if not 0 < self.rate < 1:
            raise ValueError(f"rate is {self.rate}; expected a share between 0 and 1")


@dataclass(frozen=True)
class ValidationResult:
    """A model's score on a split, and that of the residue frequencies on the same targets.

    Attributes:
        attention: the mechanism's ``listed_name``.
    """

    split: str
    attention: str
    model: MaskedScore
    unigram: MaskedScore

    def figures(self) -> dict[str, float | int | str]:
        """Return the figures as the journal writes them."""
        return {
            "split": self.split,
            "attention": self.attention,
            "loss": self.model.loss,
            "perplexity": self.model.perplexity,
            "accuracy": self.model.accuracy,
            "unigram_perplexity": self.unigram.perplexity,
            "unigram_accuracy": self.unigram.accuracy,
            "num_targets": self.model.num_targets,
        }

    def __str__(self) -> str:
        return (
            f"{self.split}: perplexity {self.model.perplexity:.3f} (unigram {self.unigram.perplexity:.3f}), "
            f"accuracy {self.model.accuracy:.2%} (unigram {self.unigram.accuracy:.2%}), "
            f"{self.model.num_targets:,} targets, by {self.attention}"
        )


def choose_proteins(proteins: Proteins, config: ValidationConfig, *, seed: int, split: str) -> MaskedProteins:
    """Return the proteins of a split that are evaluated, drawn by (seed, split), in their own order."""
    chosen = numpy.arange(len(proteins))
    if 0 < config.num_proteins < len(proteins):
        drawn = stream(seed, "validation", split).choice(chosen, size=config.num_proteins, replace=False)
        chosen = numpy.sort(drawn)
    return MaskedProteins(proteins, seed=seed, rate=config.rate, chosen=chosen)


def validate(
    engine: TrainingEngine,
    splits: Mapping[str, MaskedProteins],
    *,
    packing: PackingConfig,
    windows_per_batch: int,
    token_counts: list[int],
) -> list[ValidationResult]:
    """Score the model on every split; every process must call it.

    Args:
        engine: holds the model.
        splits: proteins with hidden residues, by the name of the split.
        packing: window length and context.
        windows_per_batch: windows at a time.
        token_counts: of the training split, for the unigram score.
    """
    model = engine.objective.model
    model.eval()
    try:
        return [
            _validate_split(engine, name, masked, packing, windows_per_batch, token_counts)
            for name, masked in splits.items()
        ]
    finally:
        model.train()


def _validate_split(
    engine: TrainingEngine,
    split: str,
    masked: MaskedProteins,
    packing: PackingConfig,
    windows_per_batch: int,
    token_counts: list[int],
) -> ValidationResult:
    batches = masked.batches(
        packing, windows_per_batch=windows_per_batch, rank=engine.rank, world_size=engine.world_size
    )
    own = add_answers(batches, engine.evaluate)
    sums = engine.sum_over_processes([own.loss, own.num_correct, *own.target_counts.tolist()])
    total = AnswerSum(sums[0], round(sums[1]), numpy.array(sums[2:], dtype=numpy.int64))
    attention = listed_name(engine.objective.model.config.attention)
    return ValidationResult(split, attention, total.score(), unigram_score(token_counts, total.target_counts))
