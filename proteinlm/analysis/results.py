"""What a comparison of attention found: plain numbers, ready to be written, drawn or printed.

Arrays carry letters: P proteins with maps, N layers, H heads, F numbers of features, R draws. A
figure that a protein cannot have (an overlap where no entry is eligible) is NaN and leaves the means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proteinlm.analysis.agreement import fitted_slope
from proteinlm.errors import ConfigError
from proteinlm.inference.evaluation import perplexity_of

Figures = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonConfig:
    """What to compare, and on how much."""

    num_random_features: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    num_draws: int = 3
    # sequences compared, drawn at random by the seed; None takes every sequence
    max_sequences: int | None = 16
    # residues; longer proteins leave the maps but not the end-to-end measures
    max_length: int = 1024
    # residues; entries of the map nearer the diagonal than this leave the top-L overlap
    separation: int = 6
    # names the draw of the sequences and of the masked positions
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.num_random_features or min(self.num_random_features) < 1:
            raise ConfigError(f"features are {self.num_random_features}; expected one or more numbers from 1")
        if len(set(self.num_random_features)) < len(self.num_random_features):
            raise ConfigError(f"features are {self.num_random_features}; expected each number once")
        for name in ("num_draws", "max_length", "separation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_sequences is not None and self.max_sequences < 1:
            raise ConfigError(f"max_sequences is {self.max_sequences}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class ReadingCounts:
    """What became of the records that were read.

    num_read = num_empty + num_not_drawn + number of compared proteins; num_too_long of the compared
    ones are longer than ``max_length``, num_nucleotides look like nucleotides and not like a protein.
    substitutions: residues read as another token, by letter.
    """

    num_read: int
    num_empty: int
    num_not_drawn: int
    num_too_long: int
    substitutions: Mapping[str, int]
    num_nucleotides: int = 0


@dataclass(frozen=True, slots=True)
class ComparedProtein:
    """One protein of the comparison."""

    identifier: str
    num_residues: int
    has_maps: bool


@dataclass(frozen=True, slots=True)
class MapFigures:
    """Agreement of the implied maps with the exact ones, and of the baselines, for every head.

    Figures as in ``agreement.Agreement``, ``MapAgreement`` and ``NormStatistics``.
    """

    total_variation_PNHFR: Figures
    output_error_PNHFR: Figures
    top_overlap_PNHFR: Figures
    uniform_total_variation_PNH: Figures
    uniform_output_error_PNH: Figures
    identity_output_error_PNH: Figures
    chance_overlap_P: Figures
    entropy_PNH: Figures
    uniform_entropy_P: Figures
    query_norm_PNH: Figures
    key_norm_PNH: Figures
    sum_norm_PNH: Figures
    kernel_deviation_PNH: Figures


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Masked residues predicted by the same weights through one kind of attention.

    kind: exact | trained | favor | uniform | identity | unigram. num_features and draw are set for
    favor. loss in nats per masked residue.
    """

    kind: str
    num_features: int | None
    draw: int | None
    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrunkFigures:
    """The whole trunk with other attention against the trunk with exact softmax.

    Hidden states are numbered from 0, after the embedding, to N, after the final norm (axis E);
    all compared proteins count (axis Q). unigram_source: whose residues the frequencies were counted
    in, "training split" or, where the checkpoint does not say, "compared proteins".
    """

    hidden_error_QEFR: Figures
    uniform_hidden_error_QE: Figures
    identity_hidden_error_QE: Figures
    evaluations: tuple[Evaluation, ...]
    num_targets: int
    unigram_source: str


@dataclass(frozen=True, slots=True)
class MapExample:
    """An exact and an implied map of one head, residues only, as means over cells of entries."""

    identifier: str
    num_residues: int
    layer: int
    head: int
    reason: str
    num_features: int
    output_error: float
    exact_CC: NDArray[np.float32]
    approximate_CC: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """Everything that a comparison found and where it comes from.

    trained_attention: settings of the mechanism that the checkpoint was trained with.
    feature_map, projection: of the FAVOR+ that was measured.
    history: lines of the run's metrics.jsonl; empty where the checkpoint lies in no run folder.
    """

    settings: ComparisonConfig
    provenance: Mapping[str, Any]
    trained_attention: Mapping[str, Any]
    feature_map: str
    projection: str
    head_dim: int
    counts: ReadingCounts
    proteins: tuple[ComparedProtein, ...]
    maps: MapFigures
    trunk: TrunkFigures
    examples: tuple[MapExample, ...]
    shown_features: int
    history: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One line of the summary: a kind of attention, and the means over heads, proteins and draws.

    A figure that this kind of attention does not have is NaN.
    """

    name: str
    num_features: int | None
    total_variation: float
    output_error: float
    top_overlap: float
    hidden_error: float
    perplexity: float
    accuracy: float


def mean(values: Figures) -> float:
    """Return the mean of the numbers that are there; NaN of none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else math.nan


def mean_over(values: Figures, axes: tuple[int, ...]) -> Figures:
    """Return means over axes of the numbers that are there; NaN of none."""
    present = ~np.isnan(values)
    sums, counts = np.where(present, values, 0).sum(axes), present.sum(axes)
    means: Figures = np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
    return means


def by_features(values_PNHFR: Figures) -> Figures:
    """Return the mean over proteins, layers, heads and draws for each number of features, as F."""
    return mean_over(values_PNHFR, (0, 1, 2, 4))


def by_head(values: Figures) -> Figures:
    """Return the mean over proteins and, where there are any, draws: NH or NHF."""
    return mean_over(values, (0, 4)) if values.ndim == 5 else mean_over(values, (0,))


def slope(report: ComparisonReport, errors_F: Figures) -> float:
    """Return the log-log slope of an error against the number of features."""
    return fitted_slope(report.settings.num_random_features, errors_F.tolist())


def evaluation_means(report: ComparisonReport, kind: str, num_features: int | None = None) -> tuple[float, float]:
    """Return perplexity and accuracy of one kind of attention, averaged over its draws; NaN of none.

    The perplexity is exp of the mean loss.
    """
    chosen = [e for e in report.trunk.evaluations if e.kind == kind and e.num_features == num_features]
    if not chosen:
        return math.nan, math.nan
    losses, accuracies = np.array([(e.loss, e.accuracy) for e in chosen]).T
    return perplexity_of(losses.mean()), float(accuracies.mean())


def summary_rows(report: ComparisonReport) -> list[SummaryRow]:
    """Return exact softmax, FAVOR+ for each number of features, and the baselines."""
    maps, trunk = report.maps, report.trunk
    favor_F = zip(
        report.settings.num_random_features,
        by_features(maps.total_variation_PNHFR).tolist(),
        by_features(maps.output_error_PNHFR).tolist(),
        by_features(maps.top_overlap_PNHFR).tolist(),
        mean_over(trunk.hidden_error_QEFR[:, -1], (0, 2)).tolist(),
        strict=True,
    )
    uniform = (
        mean(maps.uniform_total_variation_PNH),
        mean(maps.uniform_output_error_PNH),
        mean(maps.chance_overlap_P),
        mean(trunk.uniform_hidden_error_QE[:, -1]),
    )
    identity_output = mean(maps.identity_output_error_PNH)
    identity_hidden = mean(trunk.identity_hidden_error_QE[:, -1])
    nothing = (math.nan, math.nan, math.nan, math.nan)
    return [
        _summary_row(report, "exact softmax", "exact", None, (0.0, 0.0, 1.0, 0.0)),
        *(_summary_row(report, f"FAVOR+ {m}", "favor", m, tuple(figures)) for m, *figures in favor_F),
        _summary_row(report, "uniform", "uniform", None, uniform),
        _summary_row(report, "identity", "identity", None, (math.nan, identity_output, math.nan, identity_hidden)),
        _summary_row(report, "unigram", "unigram", None, nothing),
    ]


def _summary_row(
    report: ComparisonReport, name: str, kind: str, num_features: int | None, figures: tuple[float, ...]
) -> SummaryRow:
    total_variation, output_error, top_overlap, hidden_error = figures
    perplexity, accuracy = evaluation_means(report, kind, num_features)
    return SummaryRow(
        name, num_features, total_variation, output_error, top_overlap, hidden_error, perplexity, accuracy
    )


def plain(value: Any) -> Any:
    """Return arrays, dataclasses and tuples as what ``json`` writes; NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
