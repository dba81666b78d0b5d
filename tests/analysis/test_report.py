"""The report as files."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import re
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest

from proteinlm.analysis import figures
from proteinlm.analysis.report import format_summary, number, render_html, report_table, share, write_report
from proteinlm.analysis.results import by_features, summary_rows
from proteinlm.analysis.schema import read_report
from proteinlm.analysis.verdict import reach_verdict
from proteinlm.errors import ConfigError, OutputError

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Reads a page strictly: every tag that opens closes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.classes: list[str] = []
        # of each table and picture, the classes of all that holds it
        self.holders: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in {"table", "img"}:
            self.holders.append((tag, " ".join(self.classes)))
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    """The folder, and matplotlib's settings before and after it was written."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    before = dict(matplotlib.rcParams)
    write_report(report, folder)
    return folder, before, dict(matplotlib.rcParams)


@pytest.fixture(scope="module")
def folder(written):
    return written[0]


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def table(folder) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_report_is_a_page_a_table_and_the_pictures(folder):
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    pictures = ["error_by_features", "heads", "maps", "training", "trunk"]
    assert names == [*(f"figures/{name}.png" for name in pictures), "report.html", "report.json"]


def test_page_closes_every_tag(page):
    assert page.open == []


def test_page_needs_no_other_file(page):
    for tag, name, value in page.attributes:
        if name in {"src", "href", "srcset", "poster", "data", "action"}:
            assert value.startswith("data:image/png;base64,"), f"<{tag} {name}={value[:60]}>"
    assert "link" not in page.tags


def test_page_names_nothing_on_the_network(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text


def style_of(text: str) -> str:
    return text[text.index("<style>") : text.index("</style>")]


def palettes(style: str) -> dict[str, dict[str, str]]:
    """Return the colours of light and of dark paper by name, as six hexadecimal digits."""
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    names = {"light": light, "dark": dark}
    return {name: dict(re.findall(r"--(\w+): #(\w{6})", block)) for name, block in names.items()}


def contrast(one: str, other: str) -> float:
    """Return the ratio of two colours' luminances as WCAG 2.2 defines it, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_page_is_told_to_phones_and_to_dark_screens(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert '<meta name="color-scheme" content="light dark">' in text
    # paper that is printed stays white
    assert "@media screen and (prefers-color-scheme: dark)" in style_of(text)


@pytest.mark.parametrize("paper", ["light", "dark"])
def test_every_colour_of_text_can_be_read(folder, paper):
    colours = palettes(style_of((folder / "report.html").read_text(encoding="utf-8")))[paper]
    for text in ("ink", "quiet", "blue", "orange"):
        for ground in ("paper", "tint"):
            # the least that WCAG's level AA asks of small text
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_what_is_wide_scrolls_and_says_so(page, folder):
    assert sorted(tag for tag, _ in page.holders) == ["img"] * 5 + ["table"] * 3
    assert [(tag, held) for tag, held in page.holders if "scroll" not in held.split()] == []
    assert all("card" in held.split() for tag, held in page.holders if tag == "img")
    hints = [value for tag, name, value in page.attributes if (tag, name, value) == ("p", "class", "hint")]
    assert len(hints) == len(page.holders)
    reached = [tag for tag, name, _ in page.attributes if name == "tabindex"]
    assert len(reached) == len(page.holders)
    style = style_of((folder / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"\.scroll \{\s*overflow-x: auto", style)
    # a picture of 1,584 dots shrunk to a phone's 350 cannot be read
    assert int(re.search(r"\.card img \{[^}]*min-width: (\d+)px", style)[1]) >= 800
    width = int(re.search(r"max-width: (\d+)px\) \{ \.hint \{ display: block", style)[1])
    assert width >= 800 + 2 * 28


def test_page_marks_baselines_that_are_as_good(report):
    evaluations = tuple(
        dataclasses.replace(one, loss=1.0, accuracy=0.0)
        if one.kind == "uniform"
        else dataclasses.replace(one, loss=2.0)
        for one in report.trunk.evaluations
    )
    trunk = dataclasses.replace(report.trunk, evaluations=evaluations)
    changed = dataclasses.replace(report, trunk=trunk)
    text = render_html(changed, [])
    (row,) = re.findall(r'<tr class="baseline">\s*<td>uniform</td>(.*?)</tr>', text, re.DOTALL)
    perplexity, right = re.findall(r"<td([^>]*)>([^<]*)</td>", row)[-2:]
    assert perplexity == (' class="as-good"', "2.72")
    assert right == ("", "0.0 %")
    assert (
        "predicts no better than uniform attention in perplexity (7.39 against 2.72)" in reach_verdict(changed).headline
    )


def test_page_shows_every_picture(page):
    assert page.tags.count("img") == 5


def test_every_picture_says_what_it_shows(page):
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))


def test_page_escapes_what_people_write(report):
    hostile = '<script>alert("x")</script>'
    proteins = tuple(dataclasses.replace(protein, identifier=hostile) for protein in report.proteins)
    provenance = report.provenance | {"checkpoint": hostile, "sources": [hostile], "checkpoint_metadata": {hostile: 1}}
    text = render_html(dataclasses.replace(report, proteins=proteins, provenance=provenance), [])
    assert hostile not in text
    assert Page(text).tags.count("script") == 1


def test_a_hostile_identifier_can_be_drawn(report):
    examples = tuple(dataclasses.replace(e, identifier="$\\frac{<b>&") for e in report.examples)
    figures.map_pairs(dataclasses.replace(report, examples=examples)).canvas.draw()


def test_adaptive_favor_is_drawn_as_what_the_comparison_ran(report):
    trained = dict(report.trained_attention) | {"kind": "favor", "num_random_features": 16, "exact_below": 1000}
    perplexities = figures.trunk_errors(dataclasses.replace(report, trained_attention=trained)).axes[1]
    names = [text.get_text() for text in perplexities.get_legend().get_texts()]
    assert any(name.startswith("as trained (FAVOR+ 16, by features alone)") for name in names)


def test_page_states_the_verdict_and_the_baselines(page, table):
    text = " ".join("".join(page.text).split())
    assert table["verdict"]["headline"] in text
    for row in table["summary"]:
        assert row["name"] in text


def test_page_says_what_was_left_out(page):
    text = " ".join("".join(page.text).split())
    assert "1 longer than 200 residues and so without maps" in text


def test_table_is_of_its_schema(folder, report):
    table = read_report(folder / "report.json")
    assert len(table.heads) == 4
    assert table.verdict.sentences == list(reach_verdict(report).sentences)


def test_a_table_of_another_schema_is_refused(tmp_path, table):
    (tmp_path / "report.json").write_text(json.dumps(table | {"schema_version": 2}))
    with pytest.raises(ConfigError, match="has schema version 2; this proteinlm reads 1"):
        read_report(tmp_path / "report.json")


def test_a_damaged_table_is_named(tmp_path, table):
    del table["verdict"]["headline"]
    (tmp_path / "report.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"report.json: verdict.headline: is required"):
        read_report(tmp_path / "report.json")


def test_table_holds_what_was_measured(table, report):
    errors = np.array(table["maps"]["output_error_PNHFR"])
    assert errors.shape == report.maps.output_error_PNHFR.shape == (3, 2, 2, 2, 2)
    np.testing.assert_allclose(errors, report.maps.output_error_PNHFR, rtol=1e-5)
    found = [row["output_error"] for row in table["summary"] if row["num_features"]]
    assert found == pytest.approx(by_features(report.maps.output_error_PNHFR).tolist(), rel=1e-5)


def test_what_does_not_exist_is_null(report):
    missing = np.full_like(report.maps.top_overlap_PNHFR, np.nan)
    maps = dataclasses.replace(report.maps, top_overlap_PNHFR=missing)
    table = report_table(dataclasses.replace(report, maps=maps))
    assert table["summary"][1]["top_overlap"] is None
    json.dumps(table, allow_nan=False)


def test_missing_overlaps_can_be_drawn(report):
    missing = np.full_like(report.maps.top_overlap_PNHFR, np.nan)
    maps = dataclasses.replace(
        report.maps, top_overlap_PNHFR=missing, chance_overlap_P=np.full_like(report.maps.chance_overlap_P, np.nan)
    )
    figures.error_by_features(dataclasses.replace(report, maps=maps)).canvas.draw()


def test_the_same_report_gives_the_same_files(report, folder, tmp_path):
    write_report(report, tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_no_training_curve_without_metrics(report):
    assert "training" not in [picture.name for picture in figures.draw(dataclasses.replace(report, history=()))]


def test_pictures_are_of_readable_size(folder):
    for path in (folder / "figures").iterdir():
        header = path.read_bytes()[:24]
        assert header[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(header[16:20], "big") >= 1500


def test_drawing_leaves_matplotlib_as_it_was(written):
    _, before, after = written
    assert after == before


def test_an_existing_report_is_not_overwritten(report, folder):
    with pytest.raises(OutputError, match="already exists"):
        write_report(report, folder)


def test_nothing_half_written_remains(report, tmp_path):
    with pytest.raises(ValueError, match="rows"):
        write_report(dataclasses.replace(report, examples=()), tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_printed_columns_line_up(report):
    head, *lines = format_summary(summary_rows(report)).splitlines()
    ends = [place for place in range(len(head)) if head[place : place + 2] == "  "]
    assert ends
    assert len({len(line) for line in (head, *lines)}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (12345.6, "12,346"), (-0.5, "−0.500"), (math.nan, "–")],
)
def test_numbers_have_three_digits_and_no_powers_of_ten(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.0001, "<0.001"), (1.6062, "1.606"), (1e9, ">99"), (math.inf, "–"), (math.nan, "–")],
)
def test_shares_have_three_decimals(value, text):
    assert share(value) == text


def words(text: str) -> Iterator[str]:
    yield from text.replace("`", " ").replace(",", " ").split()


def test_documentation_names_every_field_of_the_table(project_root, table):
    text = set(words((project_root / "docs" / "comparing.md").read_text(encoding="utf-8")))
    fields = {*table, *table["maps"], *table["trunk"], *table["heads"][0], *table["summary"][0], *table["verdict"]}
    assert sorted(fields - text) == []
