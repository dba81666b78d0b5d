"""A comparison as files: report.html to read, report.json to compute with, and the pictures."""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

from proteinlm.analysis.headline import baselines_as_good
from proteinlm.analysis.results import ComparisonReport, SummaryRow, mean, plain, summary_rows
from proteinlm.analysis.schema import SCHEMA_VERSION
from proteinlm.analysis.verdict import head_table, protein_table, reach_verdict
from proteinlm.outputs import folder_beside

HTML_FILE = "report.html"
JSON_FILE = "report.json"
FIGURES_FOLDER = "figures"
_TEMPLATE = "report.html.jinja"


def write_report(report: ComparisonReport, folder: Path, *, replace: bool = False) -> None:
    """Make a folder of report.html, report.json and figures/*.png; it appears when all are whole.

    Args:
        report: what was found.
        folder: the folder to make.
        replace: take the place of an existing folder.

    Raises:
        OutputError: if the folder exists and is not to be replaced, or cannot be written.
    """
    with folder_beside(folder, replace=replace) as partial:
        fill_report(report, partial)


def fill_report(report: ComparisonReport, folder: Path) -> None:
    """Write report.html, report.json and figures/*.png into an empty folder."""
    from proteinlm.analysis import figures

    text = json.dumps(report_table(report), allow_nan=False, ensure_ascii=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    pictures = figures.draw(report)
    (folder / FIGURES_FOLDER).mkdir()
    for picture in pictures:
        (folder / FIGURES_FOLDER / f"{picture.name}.png").write_bytes(picture.png)
    (folder / HTML_FILE).write_text(render_html(report, pictures), encoding="utf-8")


def report_table(report: ComparisonReport) -> dict[str, Any]:
    """Return everything that was found as the table that report.json holds, a ``schema.ReportTable``."""
    examples = [
        {
            name: getattr(example, name)
            for name in ("identifier", "num_residues", "layer", "head", "reason", "num_features")
        }
        | {"output_error": example.output_error}
        for example in report.examples
    ]
    table = {
        "schema_version": SCHEMA_VERSION,
        "settings": report.settings,
        "provenance": report.provenance,
        "method": {
            "trained_attention": report.trained_attention,
            "feature_map": report.feature_map,
            "projection": report.projection,
            "head_dim": report.head_dim,
            "shown_features": report.shown_features,
        },
        "counts": report.counts,
        "verdict": reach_verdict(report),
        "summary": summary_rows(report),
        "proteins": protein_table(report),
        "heads": head_table(report),
        "maps": report.maps,
        "trunk": report.trunk,
        "examples": examples,
        "history": report.history,
    }
    result: dict[str, Any] = plain(table)
    return result


def render_html(report: ComparisonReport, pictures: Any) -> str:
    """Return the report as one page that needs no other file.

    Args:
        report: what was found.
        pictures: of ``figures.draw``; shown inside the page.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, share=share, slope=slope, tied=_tied, cells=summary_cells)
    template = importlib.resources.files("proteinlm.analysis").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    column = report.settings.num_random_features.index(report.shown_features)
    rows = {row.name: row for row in summary_rows(report)}
    shown = [
        {
            "title": picture.title,
            "caption": picture.caption,
            "source": "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii"),
            "name": picture.name,
        }
        for picture in pictures
    ]
    return environment.from_string(template).render(
        report=report,
        verdict=reach_verdict(report),
        rows=list(rows.values()),
        as_good=baselines_as_good(rows[f"FAVOR+ {report.shown_features}"], rows),
        heads=head_table(report),
        proteins=protein_table(report),
        pictures={picture["name"]: picture for picture in shown},
        column=column,
        chance=mean(report.maps.chance_overlap_P),
        root=math.sqrt(report.shown_features),
    )


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with that many significant digits, never in powers of ten; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 6)}f}".replace("-", "−")


def share(value: float) -> str:
    """Return a figure of the order of 1 with three decimals, so that a column lines up; a dash for none."""
    if not math.isfinite(value):
        return "–"
    if value > 99:
        return ">99"
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"


def accuracy(value: float) -> str:
    """Return a share of right answers in percent with one decimal; a dash for none."""
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def slope(value: float) -> str:
    """Return an exponent with two decimals; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def _tied(text: str) -> str:
    # no line may begin with the percent sign
    return text.replace(" %", "\u00a0%")


def summary_cells(row: SummaryRow) -> list[tuple[str, str]]:
    """Return the fields of a row's figures, and each figure as tables show it."""
    shares = ("total_variation", "output_error", "top_overlap", "hidden_error")
    perplexity = "–" if math.isnan(row.perplexity) else f"{row.perplexity:,.2f}"
    return [
        *((field, share(getattr(row, field))) for field in shares),
        ("perplexity", perplexity),
        ("accuracy", accuracy(row.accuracy)),
    ]


def format_summary(rows: list[SummaryRow]) -> str:
    """Return the summary as a plain table for a terminal."""
    head = ("attention", "total variation", "output error", "top-L overlap", "hidden error", "perplexity", "accuracy")
    cells = [(row.name, *(text for _, text in summary_cells(row))) for row in rows]
    widths = [max(len(line[place]) for line in (head, *cells)) for place in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *cells)
    ]
    return "\n".join(lines)
