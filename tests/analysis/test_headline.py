"""The headline says first where a baseline is as good, and never claims more than the table."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest

from proteinlm.analysis.headline import BASELINES, DISTANCES, PREDICTIONS, write_headline
from proteinlm.analysis.results import SummaryRow

COLUMNS = {column.field: column for column in (*PREDICTIONS, *DISTANCES)}
BETTER_THAN_ALL = "It predicts better than every baseline"
NEARER_THAN_ALL = "nearer than the baselines by every measure"
NO_BETTER = "predicts no better than"
NO_NEARER = "it is no nearer than"


def row(name: str, num_features: int | None = None, **figures: float) -> SummaryRow:
    nothing = dict.fromkeys(COLUMNS, math.nan)
    return SummaryRow(name, num_features, **(nothing | figures))


EXACT = row("exact softmax", total_variation=0, output_error=0, top_overlap=1, hidden_error=0)
EXACT = dataclasses.replace(EXACT, perplexity=9.0, accuracy=0.3)
FAVOR = row("FAVOR+ 64", 64, total_variation=0.1, output_error=0.105, top_overlap=0.4, hidden_error=0.02)
FAVOR = dataclasses.replace(FAVOR, perplexity=9.5, accuracy=0.28)
WORSE = {
    "exact softmax": EXACT,
    "uniform": row(
        "uniform",
        total_variation=0.2,
        output_error=0.141,
        top_overlap=0.002,
        hidden_error=0.034,
        perplexity=12.0,
        accuracy=0.15,
    ),
    "identity": row("identity", output_error=0.9, hidden_error=0.4, perplexity=14.0, accuracy=0.12),
    "unigram": row("unigram", perplexity=18.0, accuracy=0.1),
}


def headline(start: int | None = 16, **changes: dict[str, float]) -> str:
    """Return the headline where baselines have other figures than in ``WORSE``."""
    rows = {name: dataclasses.replace(one, **changes.get(name, {})) for name, one in WORSE.items()}
    return write_headline(FAVOR, rows, start)


def test_what_beats_every_baseline_is_said_with_the_figures():
    assert headline() == (
        "FAVOR+ with 64 random features is 10 % from exact softmax in the outputs of the heads, uniform attention "
        "14 %; it is nearer than the baselines by every measure of distance. Its output error is below that of uniform "
        "attention from 16 features on. It predicts better than every baseline: perplexity 9.50 (exact softmax 9.00, "
        "uniform attention 12.00), accuracy 28.0 %."
    )


def test_a_baseline_of_better_perplexity_comes_first():
    said = headline(uniform={"perplexity": 9.4})
    assert said.startswith(
        "FAVOR+ with 64 random features predicts no better than uniform attention in perplexity (9.50 against 9.40); "
        "exact softmax has 9.00 and 30.0 %. FAVOR+ is 10 % from exact softmax"
    )
    assert BETTER_THAN_ALL not in said


def test_several_baselines_are_all_named():
    said = headline(uniform={"perplexity": 9.4, "accuracy": 0.28}, unigram={"accuracy": 0.29})
    assert (
        "no better than uniform attention in perplexity (9.50 against 9.40) and accuracy (28.0 % against 28.0 %), nor "
        "than residue frequencies in accuracy (28.0 % against 29.0 %);"
    ) in said


def test_a_baseline_that_is_nearer_is_named_beside_the_distance():
    said = headline(uniform={"top_overlap": 0.5}, identity={"output_error": 0.05})
    assert (
        "it is no nearer than uniform attention in top-L overlap, nor than identity attention in output error." in said
    )
    assert NEARER_THAN_ALL not in said


def test_no_number_of_features_is_claimed_where_there_is_none():
    said = headline(None, uniform={"output_error": 0.1})
    assert "No measured number of features beats uniform attention in output error" in said
    assert "features on" not in said


def test_a_figure_that_does_not_exist_decides_nothing():
    rows = {name: dataclasses.replace(one, top_overlap=math.nan) for name, one in WORSE.items()}
    said = write_headline(dataclasses.replace(FAVOR, top_overlap=math.nan), rows, 16)
    assert NEARER_THAN_ALL in said
    assert "nan" not in said


def test_without_a_masked_residue_nothing_is_said_of_predictions():
    nothing = {"perplexity": math.nan, "accuracy": math.nan}
    rows = {name: dataclasses.replace(one, **nothing) for name, one in WORSE.items()}
    said = write_headline(dataclasses.replace(FAVOR, **nothing), rows, 16)
    assert said.startswith("FAVOR+ with 64 random features is 10 % from exact softmax")
    assert "predicts" not in said
    assert "nan" not in said


@pytest.mark.parametrize("field", COLUMNS)
def test_what_the_table_shows_as_equal_is_no_victory(field: str):
    column = COLUMNS[field]
    hair = 0.1 * 10**-column.decimals * (-1 if column.is_larger_better else 1)
    said = headline(uniform={field: getattr(FAVOR, field) + hair})
    assert f"than uniform attention in {column.name}" in said
    if column.text:
        figure = column.text(getattr(FAVOR, field))
        assert f"({figure} against {figure})" in said


def test_every_baseline_that_is_as_good_is_said_before_any_praise():
    """All ways in which uniform attention can be better, equal or worse in the six columns."""
    for signs in itertools.product((-1, 0, 1), repeat=len(COLUMNS)):
        figures = {
            field: getattr(FAVOR, field) + 0.01 * sign * (1 if column.is_larger_better else -1)
            for (field, column), sign in zip(COLUMNS.items(), signs, strict=True)
        }
        said = headline(uniform=figures)
        good = {field for field, sign in zip(COLUMNS, signs, strict=True) if sign >= 0}
        predicts, nears = (bool(good & {column.field for column in group}) for group in (PREDICTIONS, DISTANCES))
        assert (NO_BETTER in said, BETTER_THAN_ALL in said) == (predicts, not predicts)
        assert (NO_NEARER in said, NEARER_THAN_ALL in said) == (nears, not nears)
        # the last sentences speak of perplexity and output error in any case
        lost = re.split("; exact softmax|; it is nearer|Its output error|It predicts better", said)
        for field, column in COLUMNS.items():
            assert any(column.name in part for part in lost if " than uniform" in part) == (field in good)
        if predicts:
            assert said.index(NO_BETTER) < said.index("from exact softmax")


def test_every_baseline_has_its_words():
    assert set(BASELINES) == set(WORSE) - {"exact softmax"}


def printed_rows(page: str) -> dict[str, SummaryRow]:
    """Return the summary that a page shows as it was printed."""
    lines = page[page.index("attention      total variation") :].split("\n\n", maxsplit=1)[0].splitlines()[1:]
    rows = {}
    for line in lines:
        name, *cells = re.split(r" {2,}", line)
        figures = [math.nan if cell == "–" else float(cell.removesuffix(" %")) for cell in cells]
        figures[-1] /= 100
        number = re.fullmatch(r"FAVOR\+ (\d+)", name)
        rows[name] = row(name, int(number[1]) if number else None, **dict(zip(ORDER, figures, strict=True)))
    return rows


ORDER = ("total_variation", "output_error", "top_overlap", "hidden_error", "perplexity", "accuracy")


@pytest.mark.parametrize("name", ["README.md", "docs/comparing.md"])
def test_pages_print_the_headline_of_the_table_that_they_print(project_root, name):
    rows = printed_rows((project_root / "docs" / "comparing.md").read_text(encoding="utf-8"))
    expected = write_headline(rows["FAVOR+ 128"], rows, 64)
    page = (project_root / name).read_text(encoding="utf-8")
    (printed,) = re.findall(r"^FAVOR\+ with 128 random features .*$", page, re.MULTILINE)
    # the table has three digits of what the sentence rounds to two
    share = r"\d+ %(?= from exact)"
    assert re.sub(share, "", printed) == re.sub(share, "", expected)
    shown = [line for line in page.splitlines() if re.match(r"(exact softmax|FAVOR\+ \d+|uniform) {2,}", line)]
    assert len(shown) >= 6
    assert set(shown) <= set((project_root / "docs" / "comparing.md").read_text(encoding="utf-8").splitlines())
