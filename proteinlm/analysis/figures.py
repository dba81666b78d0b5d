"""Pictures of a comparison and of a corpus; the only place that draws."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from PIL import Image

from proteinlm.analysis.history import series, smoothed
from proteinlm.analysis.results import (
    ComparisonReport,
    Figures,
    MapExample,
    by_features,
    by_head,
    evaluation_means,
    mean,
    mean_over,
)
from proteinlm.corpus.summary import LENGTH_CUTS, SequenceSummary

# Okabe and Ito's palette, told apart by every kind of colour vision
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, QUIET = "#1c2430", "#6b7480"
DOTS_PER_INCH = 144
# bytes from which a picture gets a palette of 256 colours
LARGEST_PICTURE = 400_000
# numbers of features that fit below a panel
MOST_LABELS = 7
# cells of a layer x head grid up to which each carries its number
MOST_LABELLED_CELLS = 160
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure: the name of its file without ending, what it shows, and the PNG itself."""

    name: str
    title: str
    caption: str
    png: bytes


def draw(report: ComparisonReport) -> list[Picture]:
    """Return the pictures of a report; the training curve only where the run's metrics were found."""
    sketches: list[tuple[str, str, str, Callable[[ComparisonReport], Figure]]] = [
        ("error_by_features", "Error against the number of random features", _CAPTIONS["error"], error_by_features),
        ("maps", "Exact and implied maps", _CAPTIONS["maps"], map_pairs),
        ("heads", "Every layer and head", _CAPTIONS["heads"], head_grid),
        ("trunk", "The whole trunk, end to end", _CAPTIONS["trunk"], trunk_errors),
    ]
    if any(line.get("kind") in {"train", "validation"} for line in report.history):
        sketches.append(("training", "How the weights were trained", _CAPTIONS["training"], training_curve))
    with _style():
        return [Picture(name, title, caption, _png(sketch(report))) for name, title, caption, sketch in sketches]


_CAPTIONS = {
    "error": (
        "Means over heads, proteins and draws; the band holds the middle 80 % of the heads. Dashed: the law "
        "m to the power −1/2 through the last point. Orange: attention that sees every position alike."
    ),
    "maps": (
        "One protein, residues only, layers and heads counted from 0: the heads with the smallest, the median and "
        "the largest output error of the protein of median length. Weights are multiples of the weight that uniform "
        "attention gives; the left two maps of a row share one logarithmic scale. First draw of the random features."
    ),
    "heads": (
        "Means over proteins and draws, layers and heads counted from 0. Right: below 1, in purple, FAVOR+ is "
        "nearer to exact softmax than uniform attention is; above 1, in orange, it is farther."
    ),
    "trunk": (
        "Left: hidden states are numbered from 0, after the embedding, to the last, after the final norm. Right: the "
        "same weights on the same masked residues; the bar holds the range of the draws. Lines far outside the "
        "others' range are named in the legend only."
    ),
    "training": "From the run's metrics: loss of training windows, and perplexity of the validation splits.",
}


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"}):
        yield


def _png(figure: Figure) -> bytes:
    drawn, small = io.BytesIO(), io.BytesIO()
    # no name of the program and its version, so that the same numbers give the same bytes
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    if drawn.tell() <= LARGEST_PICTURE:
        return drawn.getvalue()
    # noise in 24-bit colours makes maps of megabytes; 256 colours that span the picture's are as good
    with Image.open(drawn) as image:
        colours = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours.save(small, format="png", optimize=True)
    return small.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def error_by_features(report: ComparisonReport) -> Figure:
    """Draw total variation, output error and overlap against the number of features."""
    maps = report.maps
    figure = _figure(11, 3.9)
    panels = figure.subplots(1, 3)
    baselines = (
        mean(maps.uniform_total_variation_PNH),
        mean(maps.uniform_output_error_PNH),
        mean(maps.chance_overlap_P),
    )
    names = ("Total variation of rows", "Relative output error", "Overlap of the largest entries")
    labels = ("½ Σ |A − Â|, mean over rows", "‖ÂV − AV‖ / ‖AV‖", "shared share of the top L")
    values = (maps.total_variation_PNHFR, maps.output_error_PNHFR, maps.top_overlap_PNHFR)
    for axes, name, label, errors, baseline in zip(panels, names, labels, values, baselines, strict=True):
        _feature_axis(axes, report)
        _error_band(axes, report, errors)
        axes.axhline(baseline, color=ORANGE, linestyle=(0, (1, 1)), label="uniform attention")
        axes.set_title(name)
        axes.set_ylabel(label)
    for axes, errors in zip(panels[:2], values[:2], strict=True):
        _log_scale(axes.yaxis)
        limits = axes.get_ylim()
        _square_root_law(axes, report, by_features(errors))
        axes.set_ylim(limits)
    panels[2].set_ylim(0, 1)
    panels[2].lines[-1].set_label("uniform attention (chance)")
    for axes in panels:
        axes.legend(loc="best")
    return figure


def _feature_axis(axes: Any, report: ComparisonReport) -> None:
    features = sorted(report.settings.num_random_features)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(features[:: -(-len(features) // MOST_LABELS)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("random features m")


def _log_scale(axis: Any) -> None:
    axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    if high / low < 4:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5, 7) if high / low < 30 else (1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))


def _sorted_features(report: ComparisonReport) -> tuple[list[int], list[int]]:
    features = report.settings.num_random_features
    order = sorted(range(len(features)), key=features.__getitem__)
    return [features[i] for i in order], order


def _error_band(axes: Any, report: ComparisonReport, values_PNHFR: Figures) -> None:
    features, order = _sorted_features(report)
    heads_XF = by_head(values_PNHFR).reshape(-1, len(order))[:, order]
    low, high = np.nanquantile(heads_XF, (0.1, 0.9), axis=0) if not np.isnan(heads_XF).all() else heads_XF[:2]
    axes.fill_between(features, low, high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(features, by_features(values_PNHFR)[order], color=BLUE, marker="o", label="FAVOR+")


def _square_root_law(axes: Any, report: ComparisonReport, errors_F: Figures) -> None:
    features, order = _sorted_features(report)
    if len(features) < 2:
        return
    last = errors_F[order][-1]
    guide = [last * (m / features[-1]) ** -0.5 for m in features]
    axes.plot(features, guide, color=QUIET, linestyle="--", linewidth=1.2, label="∝ m$^{-1/2}$")


def map_pairs(report: ComparisonReport) -> Figure:
    """Draw exact map, implied map and their difference for the chosen heads."""
    examples = report.examples
    figure = _figure(11, 3.05 * len(examples) + 0.35)
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        _map_row(figure, row, example)
    title = f"{_shortened(examples[0].identifier)}, {examples[0].num_residues:,} residues"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=QUIET)
    return figure


def _shortened(text: str) -> str:
    # a dollar sign would start a formula
    return (text if len(text) <= 60 else f"{text[:59]}…").replace("$", r"\$")


def _map_row(figure: Figure, row: Any, example: MapExample) -> None:
    size = example.num_residues
    exact, approximate = example.exact_CC * size, example.approximate_CC * size
    scale = _weight_scale(exact)
    difference = approximate - exact
    bound = float(np.quantile(np.abs(difference), 0.995)) or 1.0
    corners = (0.5, size + 0.5, size + 0.5, 0.5)
    box = {"origin": "upper", "extent": corners, "aspect": "equal", "interpolation": "nearest"}
    # a logarithmic scale has no place for a weight of 0
    shown = [np.maximum(weights, scale.vmin or 0) for weights in (exact, approximate)]
    exact_image, _ = (
        axes.imshow(weights, norm=scale, cmap=_steps("viridis"), **box)
        for axes, weights in zip(row[:2], shown, strict=True)
    )
    limits = Normalize(-bound, bound)
    difference_image = row[2].imshow(difference, norm=limits, cmap=_steps("PuOr_r"), **box)
    place = f"layer {example.layer}, head {example.head}"
    titles = (f"Exact softmax · {place}", f"FAVOR+ {example.num_features} · error {example.output_error:.3f}")
    for axes, title in zip(row, (*titles, "FAVOR+ minus exact"), strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(visible=False)
        axes.set_xlabel("key residue")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="lower"))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, prune="lower"))
    row[0].set_ylabel(f"{example.reason} error\nquery residue")
    weights = figure.colorbar(exact_image, ax=list(row[:2]), shrink=0.85, label="weight × L")
    _plain_colours(weights, scale)
    figure.colorbar(difference_image, ax=row[2], shrink=0.85, label="difference × L")


def _steps(name: str) -> Any:
    # two maps' worth of them fit the colours of a picture
    return matplotlib.colormaps[name].resampled(65)


def _weight_scale(weights_LL: Any) -> LogNorm:
    low, high = (float(value) for value in np.quantile(weights_LL, (0.01, 0.998)))
    low = max(low, high / 1e3, 1e-6)
    return LogNorm(low, max(high, low * 1.05))


def _plain_colours(bar: Any, scale: LogNorm) -> None:
    low, high = scale.vmin or 1.0, scale.vmax or 1.0
    locator = MaxNLocator(5, steps=[1, 2, 5, 10]) if high / low < 10 else LogLocator(base=10, subs=(1, 3))
    bar.set_ticks([tick for tick in locator.tick_values(low, high) if low <= tick <= high])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def head_grid(report: ComparisonReport) -> Figure:
    """Draw the output error of every head, and its ratio to that of uniform attention."""
    column = report.settings.num_random_features.index(report.shown_features)
    errors_NH = by_head(report.maps.output_error_PNHFR)[..., column]
    uniform_NH = by_head(report.maps.uniform_output_error_PNH)
    layers, heads = errors_NH.shape
    figure = _figure(11, min(12.0, max(3.2, 1.4 + 0.46 * layers)))
    left, right = figure.subplots(1, 2)
    ratio_NH = errors_NH / np.maximum(uniform_NH, np.finfo(float).tiny)
    bound = max(1.25, float(np.nanmax(np.maximum(ratio_NH, 1 / np.maximum(ratio_NH, 1e-3)))))
    pictures = (
        (
            left,
            errors_NH,
            "cividis",
            Normalize(0, float(errors_NH.max())),
            f"Output error, m = {report.shown_features}",
        ),
        (right, ratio_NH, "PuOr_r", LogNorm(1 / bound, bound), "Output error ÷ that of uniform attention"),
    )
    for axes, values, colours, norm, title in pictures:
        image = axes.imshow(values, norm=norm, cmap=colours, aspect="auto")
        axes.set_title(title)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        axes.grid(visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(min(heads, 12), integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(min(layers, 12), integer=True))
        bar = figure.colorbar(image, ax=axes)
        if isinstance(norm, LogNorm):
            _plain_colours(bar, norm)
        if layers * heads <= MOST_LABELLED_CELLS:
            _label_cells(axes, image, values)
    return figure


def _label_cells(axes: Any, image: Any, values_NH: Figures) -> None:
    for layer, head in np.ndindex(*values_NH.shape):
        red, green, blue, _ = image.cmap(image.norm(values_NH[layer, head]))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        value = values_NH[layer, head]
        text = f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
        axes.text(head, layer, text, ha="center", va="center", fontsize=8.5, color="white" if is_dark else INK)


def trunk_errors(report: ComparisonReport) -> Figure:
    """Draw the error of hidden states by layer, and perplexities."""
    figure = _figure(11, 4.3)
    left, right = figure.subplots(1, 2)
    features, order = _sorted_features(report)
    trunk = report.trunk
    depth = np.arange(trunk.hidden_error_QEFR.shape[1])
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(order)))
    for m, column, shade in zip(features, order, shades, strict=True):
        # the embedding is the same for all: its error 0 has no place on a logarithmic scale
        curve = mean_over(trunk.hidden_error_QEFR[:, :, column], (0, 2))
        left.plot(depth[1:], curve[1:], color=shade, marker="o", markersize=4, label=f"FAVOR+ {m:,}")
    uniform = mean_over(trunk.uniform_hidden_error_QE, (0,))
    left.plot(depth[1:], uniform[1:], color=ORANGE, linestyle=(0, (1, 1)), label="uniform")
    _log_scale(left.yaxis)
    left.xaxis.set_major_locator(MaxNLocator(min(len(depth) - 1, 12) or 1, integer=True))
    left.set_title("Hidden states against exact softmax")
    left.set_xlabel("hidden states after layer")
    left.set_ylabel("relative error ‖ĥ − h‖ / ‖h‖")
    left.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _perplexities(right, report)
    return figure


def _perplexities(axes: Any, report: ComparisonReport) -> None:
    features, _ = _sorted_features(report)
    means = np.array([evaluation_means(report, "favor", m)[0] for m in features])
    draws = [[e.perplexity for e in report.trunk.evaluations if e.num_features == m] for m in features]
    spread = np.abs(np.array([[min(d), max(d)] for d in draws]).T - means)
    _feature_axis(axes, report)
    axes.errorbar(features, means, yerr=spread, color=BLUE, marker="o", capsize=3, label="FAVOR+")
    lines = (
        ("exact", "exact softmax", INK, "-"),
        ("trained", _trained_name(report), SKY, "-"),
        ("uniform", "uniform attention", ORANGE, (0, (1, 1))),
        ("identity", "identity attention", PURPLE, (0, (1, 1))),
        ("unigram", "residue frequencies", GREEN, "--"),
    )
    levels = {kind: evaluation_means(report, kind)[0] for kind, *_ in lines}
    middle = np.array([*means, levels["exact"], levels["unigram"]])
    margin = max(0.35 * float(np.ptp(middle)), 0.02 * float(middle.max()))
    for kind, name, colour, dashes in lines:
        is_near = middle.min() - 2 * margin <= levels[kind] <= middle.max() + 2 * margin
        level = levels[kind] if is_near else np.nan
        axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.6, label=f"{name} {levels[kind]:.2f}")
    axes.margins(y=0.12)
    # matplotlib lists lines before error bars
    handles, names = axes.get_legend_handles_labels()
    axes.legend([handles[-1], *handles[:-1]], [names[-1], *names[:-1]], loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Masked residues, the same weights")
    axes.set_ylabel("perplexity")


def _trained_name(report: ComparisonReport) -> str:
    own = report.trained_attention
    if own["kind"] != "favor":
        return f"as trained ({own['kind']})"
    # comparisons never compute a segment exactly, whatever training did
    alone = ", by features alone" if own.get("exact_below") else ""
    return f"as trained (FAVOR+ {own['num_random_features']}{alone})"


def training_curve(report: ComparisonReport) -> Figure:
    """Draw training loss and validation perplexity against the optimiser step."""
    figure = _figure(11, 3.9)
    left, right = figure.subplots(1, 2)
    steps, losses = series(report.history, "train", None, "loss")
    left.plot(steps, losses, color=SKY, linewidth=1, alpha=0.6, label="training windows")
    if len(losses) >= 20:
        left.plot(*smoothed(steps, losses), color=BLUE, label="running mean")
    left.set_ylabel("loss, nats per masked residue")
    left.set_title("Training loss")
    splits = sorted({str(line["split"]) for line in report.history if line.get("kind") == "validation"})
    for split, colour in zip(splits, (BLUE, VERMILION, GREEN, PURPLE), strict=False):
        name = split.removeprefix("validation_").upper()
        right.plot(*series(report.history, "validation", split, "perplexity"), color=colour, marker="o", label=name)
        at, unigram = series(report.history, "validation", split, "unigram_perplexity")
        right.plot(at, unigram, color=colour, linestyle="--", linewidth=1.4, label=f"{name}, residue frequencies")
    right.set_ylabel("perplexity")
    right.set_title("Validation perplexity")
    for axes in (left, right):
        axes.set_xlabel("optimiser step")
        if axes.lines:
            axes.legend(loc="best")
    return figure


def draw_lengths(splits: Mapping[str, SequenceSummary]) -> bytes:
    """Return a PNG of the lengths of the sequences, one line for each split that has any."""
    with _style():
        return _png(length_histogram(splits))


def length_histogram(splits: Mapping[str, SequenceSummary]) -> Figure:
    """Draw the share of each split's sequences by length on a logarithmic axis, and where cuts would fall."""
    figure = _figure(9.5, 4.6)
    axes = figure.subplots()
    shown = {name: split for name, split in splits.items() if split.num_sequences}
    for (name, split), colour in zip(shown.items(), (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY), strict=False):
        edges, counts = np.array(split.histogram.edges), np.array(split.histogram.counts)
        # per doubling, so that the width of a step makes no difference
        heights = counts / split.num_sequences / np.diff(np.log2(edges))
        axes.stairs(heights, edges, color=colour, linewidth=1.8, label=f"{name}, {split.num_sequences:,}")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    _length_axis(axes, shown)
    for cut in LENGTH_CUTS:
        axes.axvline(cut, color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.annotate(
            _beyond(shown, cut),
            (cut, 0.98),
            (5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=9,
            in_layout=False,
        )
    axes.set_title("Lengths of the sequences")
    axes.set_ylabel("share of the sequences per doubling of the length")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if shown:
        axes.legend(loc="upper left", title="split, sequences", alignment="left")
    return figure


def _length_axis(axes: Any, splits: Mapping[str, SequenceSummary]) -> None:
    axes.set_xscale("log", base=2)
    # the cuts are always in sight
    longest = max([5 * max(LENGTH_CUTS), *(split.longest for split in splits.values())])
    shortest = min([64, *(split.shortest for split in splits.values())])
    axes.set_xlim(shortest / 1.1, longest * 1.6)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=40))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel("length, residues")


def _beyond(splits: Mapping[str, SequenceSummary], cut: int) -> str:
    """Say what a cut would touch, over all splits."""
    found = [(split.cuts[str(cut)], split) for split in splits.values()]
    longer = sum(each.num_longer for each, _ in found) / max(1, sum(split.num_sequences for _, split in found))
    residues = sum(split.num_residues for _, split in found)
    beyond = sum(each.share_beyond * split.num_residues for each, split in found) / max(1, residues)
    return f"{cut:,} residues\n{_percent(longer)} of sequences longer\n{_percent(beyond)} of residues beyond"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%" if share else "0%"
