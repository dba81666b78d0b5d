"""Masked residues predicted by the same weights through every kind of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proteinlm.analysis.results import ComparisonConfig, Evaluation
from proteinlm.analysis.trunks import Trunks
from proteinlm.batches.packing import SPECIAL_TOKENS, PackingConfig
from proteinlm.inference.evaluation import MaskedProteins, MaskedScore, evaluate, unigram_score
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.progress import Progress
from proteinlm.sequence.alphabet import VOCAB_SIZE


@dataclass(frozen=True, slots=True)
class EncodedProteins:
    """Proteins in memory as ``evaluate`` takes them."""

    identifiers: Sequence[str]
    encoded: Sequence[NDArray[np.uint8]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the residues of each protein, int64 (N,)."""
        return np.array([len(tokens) for tokens in self.encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.encoded)

    def tokens(self, index: int) -> NDArray[np.uint8]:
        """Return the residues of a protein as token ids."""
        return self.encoded[index]

    def identifier(self, index: int) -> str:
        """Return the name of a protein."""
        return self.identifiers[index]


def whole_protein_packing(trained: PackingConfig, proteins: EncodedProteins) -> PackingConfig:
    """Return the packing in which every protein is seen whole.

    Joint windows stay as in training, because there a cut is part of what a window is.
    """
    if trained.context == "joint":
        return trained
    longest = int(proteins.lengths.max()) + SPECIAL_TOKENS[trained.context]
    return PackingConfig(window_length=max(trained.window_length, longest), context=trained.context)


def evaluate_trunks(
    trunks: Trunks,
    proteins: EncodedProteins,
    packing: PackingConfig,
    settings: ComparisonConfig,
    *,
    token_counts: Sequence[int] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return what each kind of attention makes of the same masked residues, by fields of ``TrunkFigures``.

    Args:
        trunks: the models.
        proteins: the proteins whose residues are masked.
        packing: window length and context.
        settings: numbers of features, and the seed of the masks.
        token_counts: how often each token occurs in the training split, for the unigram baseline;
            None counts the proteins themselves.
        progress: is told the models done.
    """
    masked = MaskedProteins(proteins, seed=settings.seed)
    models: list[tuple[str, int | None, int | None, MaskedLM]] = [
        ("exact", None, None, trunks.exact),
        ("trained", None, None, trunks.trained),
        ("uniform", None, None, trunks.uniform),
        ("identity", None, None, trunks.identity),
    ]
    for num_features, draws in zip(settings.num_random_features, trunks.favor, strict=True):
        models += [("favor", num_features, draw, model) for draw, model in enumerate(draws)]
    found: list[Evaluation] = []
    target_counts = np.zeros(VOCAB_SIZE, dtype=np.int64)
    progress.start("masked residues", len(models), "passes")
    for kind, of_features, draw, model in models:
        score, target_counts = evaluate(model, masked, packing)
        found.append(_evaluation(kind, score, of_features, draw))
        progress.advance(1)
    progress.finish()
    frequencies = _counted(proteins) if token_counts is None else token_counts
    found.append(_evaluation("unigram", unigram_score(frequencies, target_counts)))
    return {
        "evaluations": tuple(found),
        "num_targets": int(target_counts.sum()),
        "unigram_source": "compared proteins" if token_counts is None else "training split",
    }


def _evaluation(kind: str, score: MaskedScore, num_features: int | None = None, draw: int | None = None) -> Evaluation:
    return Evaluation(kind, num_features, draw, score.loss, score.perplexity, score.accuracy)


def _counted(proteins: EncodedProteins) -> list[int]:
    counts: list[int] = np.bincount(np.concatenate(proteins.encoded), minlength=VOCAB_SIZE).tolist()
    return counts
