"""What a comparison says in plain words, and the numbers that the words rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from proteinlm.analysis.headline import percent, write_headline
from proteinlm.analysis.results import (
    ComparisonReport,
    SummaryRow,
    by_features,
    by_head,
    mean,
    mean_over,
    slope,
    summary_rows,
)

# share of the entropy of uniform attention from which a model's attention counts as nearly flat
NEARLY_FLAT = 0.95


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of a comparison.

    beats_uniform_from: the smallest measured number of features from which on, at every measured
        one, FAVOR+'s mean output error is below that of uniform attention; None if there is none.
    better_heads: for each number of features, the share of heads with a smaller output error than
        under uniform attention.
    entropy_share: mean entropy of the exact rows over that of uniform attention.
    output_error_slope, total_variation_slope: log-log slopes against the number of features.

    Where a figure that the words rest on is not finite there is no answer: the headline says so, and the numbers
    are NaN.
    """

    headline: str
    sentences: tuple[str, ...]
    beats_uniform_from: int | None
    better_heads: tuple[float, ...]
    entropy_share: float
    output_error_slope: float
    total_variation_slope: float


def reach_verdict(report: ComparisonReport) -> Verdict:
    """Return the answer of a comparison."""
    if missing := _not_finite(report):
        return _no_verdict(report, missing)
    features, maps = report.settings.num_random_features, report.maps
    errors_F = by_features(maps.output_error_PNHFR)
    uniform = mean(maps.uniform_output_error_PNH)
    start = _beats_from(features, errors_F.tolist(), uniform)
    is_better_NHF = by_head(maps.output_error_PNHFR) < by_head(maps.uniform_output_error_PNH)[..., None]
    better = tuple(is_better_NHF.mean((0, 1)).tolist())
    entropy_share = float((maps.entropy_PNH / maps.uniform_entropy_P[:, None, None]).mean())
    slopes = slope(report, errors_F), slope(report, by_features(maps.total_variation_PNHFR))
    rows = {row.name: row for row in summary_rows(report)}
    shown = rows[f"FAVOR+ {report.shown_features}"]
    share_of_heads = better[features.index(report.shown_features)]
    sentences = (
        _about_layers(shown, uniform, share_of_heads),
        _about_features(start, features, slopes[0]),
        _about_flatness(entropy_share, uniform, report),
        _about_trunk(report, shown, rows)
        if report.trunk.num_targets
        else _about_trunk_without_targets(shown, rows["uniform"]),
    )
    return Verdict(write_headline(shown, rows, start), sentences, start, better, entropy_share, *slopes)


def _not_finite(report: ComparisonReport) -> list[str]:
    """Return which of the figures that a verdict rests on are not finite, and how many of each."""
    maps, trunk = report.maps, report.trunk
    needed = {
        "output errors of FAVOR+": maps.output_error_PNHFR,
        "output errors of uniform attention": maps.uniform_output_error_PNH,
        "total variations of FAVOR+": maps.total_variation_PNHFR,
        "entropies of exact rows": maps.entropy_PNH,
        "errors of FAVOR+'s final hidden states": trunk.hidden_error_QEFR[:, -1],
        "errors of uniform attention's final hidden states": trunk.uniform_hidden_error_QE[:, -1],
        "losses on masked residues": np.array([e.loss for e in trunk.evaluations if trunk.num_targets]),
    }
    counts = {name: int((~np.isfinite(values)).sum()) for name, values in needed.items()}
    return [f"{count:,} of {needed[name].size:,} {name}" for name, count in counts.items() if count]


def _no_verdict(report: ComparisonReport, missing: list[str]) -> Verdict:
    return Verdict(
        headline=f"No verdict: {', '.join(missing)} are not finite.",
        sentences=(
            "The model computes values there that leave the range of float32, although every weight is finite. Figures "
            "that are not finite are dashes in the tables and null in report.json, and the other means leave them out.",
        ),
        beats_uniform_from=None,
        better_heads=(math.nan,) * len(report.settings.num_random_features),
        entropy_share=math.nan,
        output_error_slope=math.nan,
        total_variation_slope=math.nan,
    )


def _beats_from(features: tuple[int, ...], errors: list[float], uniform: float) -> int | None:
    start = None
    for m, error in sorted(zip(features, errors, strict=True), reverse=True):
        if not error < uniform:
            break
        start = m
    return start


def _about_layers(shown: SummaryRow, uniform: float, share_of_heads: float) -> str:
    # proteins that are too short have no entry that counts
    shared = percent(shown.top_overlap)
    overlap = f" Of the largest entries of the exact maps, {shared} are among the largest implied ones."
    return (
        f"The outputs of the attention heads differ from the exact ones by {percent(shown.output_error)} "
        f"of their norm with {shown.num_features} features (uniform attention: {percent(uniform)}), and "
        f"{percent(shown.total_variation)} of the weight of a row lies elsewhere. "
        f"FAVOR+ is nearer to exact than uniform attention in {percent(share_of_heads)} of the heads."
        + (overlap if math.isfinite(shown.top_overlap) else "")
    )


def _about_features(start: int | None, features: tuple[int, ...], exponent: float) -> str:
    law = f"The output error falls as m to the power {exponent:.2f}; theory gives −0.50 for small norms.".replace(
        "power -", "power −"
    )
    if math.isnan(exponent):
        reason = "One number of features was measured" if len(features) == 1 else "The errors lie on no line"
        law = f"{reason}, so there is no slope to report."
    if start is None:
        return (
            f"At none of the measured numbers of features, up to {max(features)}, is FAVOR+ on average nearer to exact "
            f"softmax than attention that sees every position alike. {law}"
        )
    return (
        f"On average over heads and proteins FAVOR+ has a smaller output error than uniform attention from {start} "
        f"features on. {law}"
    )


def _about_flatness(entropy_share: float, uniform: float, report: ComparisonReport) -> str:
    sum_norm = mean(report.maps.sum_norm_PNH)
    deviation = mean(report.maps.kernel_deviation_PNH) / math.sqrt(report.shown_features)
    flatness = f"The entropy of the exact rows is {100 * entropy_share:.1f} % of that of uniform attention"
    if entropy_share >= NEARLY_FLAT:
        flatness += (
            f": this model's attention is nearly flat, uniform attention is only {percent(uniform)} from it, "
            "and a small error says little"
        )
    norms = f"Queries and keys meet with a mean |q + k|² of {sum_norm:.2f} (scaled by 1/√K), for which"
    if not deviation < 1:
        return f"{flatness}. {norms} {report.shown_features} independent features say nothing of a single kernel value."
    return (
        f"{flatness}. {norms} {report.shown_features} independent features estimate one kernel value to within "
        f"{percent(deviation)}."
    )


def _about_trunk(report: ComparisonReport, shown: SummaryRow, rows: dict[str, SummaryRow]) -> str:
    exact, uniform, unigram = rows["exact softmax"], rows["uniform"], rows["unigram"]
    num_layers = report.maps.entropy_PNH.shape[1]
    standard_error = math.sqrt(exact.accuracy * (1 - exact.accuracy) / report.trunk.num_targets)
    text = (
        f"Through all {num_layers} layers the final hidden states differ by {percent(shown.hidden_error)} "
        f"(uniform attention: {percent(uniform.hidden_error)}). On the same {report.trunk.num_targets:,} masked "
        f"residues the weights reach perplexity {exact.perplexity:.2f} with exact softmax, {shown.perplexity:.2f} with "
        f"FAVOR+ and {uniform.perplexity:.2f} with uniform attention; residue frequencies alone reach "
        f"{unigram.perplexity:.2f}. The standard error of an accuracy on that many is {percent(standard_error)}."
    )
    gain = _gain(exact, unigram)
    if gain <= 0:
        return (
            f"{text} This checkpoint predicts residues no better than their frequencies do: read its maps accordingly."
        )
    kept = [_gain(row, unigram) / gain for row in (shown, uniform)]
    return (
        f"{text} Of exact softmax's gain of {gain:.3f} nats over frequencies FAVOR+ keeps {percent(kept[0])} and "
        f"uniform attention {percent(kept[1])}."
    )


def _about_trunk_without_targets(shown: SummaryRow, uniform: SummaryRow) -> str:
    return (
        f"Through all layers the final hidden states differ by {percent(shown.hidden_error)} (uniform attention: "
        f"{percent(uniform.hidden_error)}). No residue could be masked, so there is no perplexity to report."
    )


def _gain(row: SummaryRow, unigram: SummaryRow) -> float:
    """Return by how many nats a residue is predicted better than by frequencies; both perplexities may be infinite."""
    return math.log(unigram.perplexity) - math.log(row.perplexity)


def head_table(report: ComparisonReport) -> list[dict[str, float | int | list[float]]]:
    """Return what was measured of each head, means over proteins and draws; lists go by features."""
    maps = report.maps
    over_proteins = {
        "entropy": maps.entropy_PNH,
        "query_norm": maps.query_norm_PNH,
        "key_norm": maps.key_norm_PNH,
        "sum_norm": maps.sum_norm_PNH,
        "kernel_deviation": maps.kernel_deviation_PNH,
        "uniform_total_variation": maps.uniform_total_variation_PNH,
        "uniform_output_error": maps.uniform_output_error_PNH,
        "identity_output_error": maps.identity_output_error_PNH,
    }
    by_number = {
        "total_variation": maps.total_variation_PNHFR,
        "output_error": maps.output_error_PNHFR,
        "top_overlap": maps.top_overlap_PNHFR,
    }
    means_NH = {name: by_head(values) for name, values in over_proteins.items()}
    means_NHF = {name: by_head(values) for name, values in by_number.items()}
    return [
        {
            "layer": layer,
            "head": head,
            **{name: float(values[layer, head]) for name, values in means_NH.items()},
            **{name: values[layer, head].tolist() for name, values in means_NHF.items()},
            "output_error_slope": slope(report, means_NHF["output_error"][layer, head]),
        }
        for layer, head in np.ndindex(*maps.entropy_PNH.shape[1:])
    ]


def protein_table(report: ComparisonReport) -> list[dict[str, str | int | float]]:
    """Return what was measured of each protein at the shown number of features; NaN without maps."""
    column = report.settings.num_random_features.index(report.shown_features)
    maps, trunk = report.maps, report.trunk
    output_P = mean_over(maps.output_error_PNHFR[..., column, :], (1, 2, 3))
    overlap_P = mean_over(maps.top_overlap_PNHFR[..., column, :], (1, 2, 3))
    uniform_P = mean_over(maps.uniform_output_error_PNH, (1, 2))
    hidden_Q = mean_over(trunk.hidden_error_QEFR[:, -1, column], (1,))
    places = iter(range(len(output_P)))
    table: list[dict[str, str | int | float]] = []
    for number, protein in enumerate(report.proteins):
        place = next(places) if protein.has_maps else None
        table.append(
            {
                "identifier": protein.identifier,
                "num_residues": protein.num_residues,
                "output_error": math.nan if place is None else float(output_P[place]),
                "uniform_output_error": math.nan if place is None else float(uniform_P[place]),
                "top_overlap": math.nan if place is None else float(overlap_P[place]),
                "hidden_error": float(hidden_Q[number]),
            }
        )
    return table
