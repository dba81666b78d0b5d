"""The headline of a comparison: where a baseline is as good comes before how near FAVOR+ is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from proteinlm.analysis.results import SummaryRow

# how the summary's baselines are called in a sentence
BASELINES = {"uniform": "uniform attention", "identity": "identity attention", "unigram": "residue frequencies"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the summary: its field, the decimals that tables show, and which way is better.

    text: how a sentence tells a figure; None leaves figures to the table.
    """

    field: str
    name: str
    decimals: int
    is_larger_better: bool
    text: Callable[[float], str] | None = None

    def figure(self, row: SummaryRow) -> float:
        """Return a row's figure as a table shows it: what differs by less is the same."""
        return round(float(getattr(row, self.field)), self.decimals)

    def is_as_good(self, one: SummaryRow, other: SummaryRow) -> bool:
        """Return whether one row's figure is as good as the other's or better; False where one has none."""
        mine, theirs = self.figure(one), self.figure(other)
        return mine >= theirs if self.is_larger_better else mine <= theirs

    def against(self, one: SummaryRow, other: SummaryRow) -> str:
        """Return the column's name and, where sentences tell them, both figures."""
        if self.text is None:
            return self.name
        return f"{self.name} ({self.text(getattr(one, self.field))} against {self.text(getattr(other, self.field))})"


def percent(share: float) -> str:
    """Return a share as people say it: two digits and a percent sign; a dash where there is none."""
    if not math.isfinite(share):
        return "–"
    value = 100 * share
    if value < 0:
        return f"−{percent(-share)}"
    return f"{value:,.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %"


def _perplexity(value: float) -> str:
    return f"{value:,.2f}"


def _accuracy(value: float) -> str:
    return f"{100 * value:.1f} %"


PREDICTIONS = (
    Column("perplexity", "perplexity", 2, False, _perplexity),
    Column("accuracy", "accuracy", 3, True, _accuracy),
)
DISTANCES = (
    Column("total_variation", "total variation", 3, False),
    Column("output_error", "output error", 3, False),
    Column("top_overlap", "top-L overlap", 3, True),
    Column("hidden_error", "hidden error", 3, False),
)


def baselines_as_good(shown: SummaryRow, rows: Mapping[str, SummaryRow]) -> dict[str, list[str]]:
    """Return for each column the names of the baselines that are as good as a row or better there."""
    return {
        column.field: [name for name in BASELINES if column.is_as_good(rows[name], shown)]
        for column in (*PREDICTIONS, *DISTANCES)
    }


def write_headline(shown: SummaryRow, rows: Mapping[str, SummaryRow], start: int | None) -> str:
    """Return the answer of a comparison in a few sentences.

    Args:
        shown: the row of FAVOR+ that the headline is about.
        rows: the summary by name, the baselines among them.
        start: number of features from which on FAVOR+'s output error is below uniform attention's.
    """
    favor, exact = f"FAVOR+ with {shown.num_features} random features", rows["exact softmax"]
    # no residue could be masked
    if math.isnan(shown.perplexity):
        return _distance(favor, shown, rows, start)
    lost = _lost(PREDICTIONS, shown, rows)
    if lost:
        return (
            f"{favor} predicts no better than {lost}; exact softmax has {_perplexity(exact.perplexity)} and "
            f"{_accuracy(exact.accuracy)}. {_distance('FAVOR+', shown, rows, start)}"
        )
    second = min((rows[name] for name in BASELINES), key=lambda row: row.perplexity)
    return (
        f"{_distance(favor, shown, rows, start)} It predicts better than every baseline: perplexity "
        f"{_perplexity(shown.perplexity)} (exact softmax {_perplexity(exact.perplexity)}, {BASELINES[second.name]} "
        f"{_perplexity(second.perplexity)}), accuracy {_accuracy(shown.accuracy)}."
    )


def _lost(columns: Iterable[Column], shown: SummaryRow, rows: Mapping[str, SummaryRow]) -> str:
    """Return "X in A and B, nor than Y in …"; empty if no baseline is as good."""
    clauses = []
    for name, words in BASELINES.items():
        places = [column.against(shown, rows[name]) for column in columns if column.is_as_good(rows[name], shown)]
        if places:
            clauses.append(f"{words} in {_listed(places)}")
    return ", nor than ".join(clauses)


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _distance(favor: str, shown: SummaryRow, rows: Mapping[str, SummaryRow], start: int | None) -> str:
    lost = _lost(DISTANCES, shown, rows)
    rank = f"no nearer than {lost}" if lost else "nearer than the baselines by every measure of distance"
    beaten = (
        "No measured number of features beats uniform attention in output error."
        if start is None
        else f"Its output error is below that of uniform attention from {start} features on."
    )
    return (
        f"{favor} is {percent(shown.output_error)} from exact softmax in the outputs of the heads, uniform attention "
        f"{percent(rows['uniform'].output_error)}; it is {rank}. {beaten}"
    )
