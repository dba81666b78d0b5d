"""What ``proteinlm inspect`` says of a corpus and of a file of sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proteinlm.cli.terminal import TerminalProgress

if TYPE_CHECKING:
    from proteinlm.batches.packing_efficiency import PackingEfficiency
    from proteinlm.corpus import Corpus
    from proteinlm.corpus.summary import ClusterCount, SequenceSummary

# a table and the lines that people read of it
Description = tuple[dict[str, Any], list[str]]

# of the longest bar of a histogram
_BAR = 30


@dataclasses.dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What is asked beside the plain summary."""

    window_length: int  # positions
    counts_duplicates: bool
    picture: Path | None


def describe_corpus(path: Path, options: CorpusOptions) -> Description:
    """Return what a corpus is and holds."""
    from proteinlm.corpus import open_corpus, summarise_corpus
    from proteinlm.corpus.repeats import count_repeats
    from proteinlm.sequence.wording import listed

    corpus = open_corpus(path)
    summary = summarise_corpus(corpus)
    packing = _packing(corpus, options.window_length)
    repeats = count_repeats(corpus, progress=TerminalProgress()) if options.counts_duplicates else None
    origin = summary.manifest
    lines = [f"from {origin['name']} ({origin['release']}), {origin['licence']}, {origin['credit']}"] if origin else []
    lines.append(
        f"{summary.num_shards} shards, {summary.num_bytes / 1e6:,.1f} MB, format {summary.format_version}, "
        f"sha256 {summary.digest[:12]}…"
    )
    for name, counts in (("dropped", summary.dropped), ("noted", summary.noted), ("replaced", summary.substitutions)):
        lines += [f"{name}: {listed(counts)}"] if counts else []
    columns = {
        name: _columns(split)
        | _cluster_cells(summary.clusters, name)
        | ({} if repeats is None else {"equal to an earlier one": f"{repeats[name]:,}"})
        | _packing_cells(packing[name])
        for name, split in summary.splits.items()
    }
    lines += ["", *_table(columns), *_samples(packing), *_leaks(summary.leaks)]
    lines += ["", *_histogram(summary.splits), "", *_composition(summary.splits)]
    _draw(options.picture, summary.splits)
    extra = {"packing": {name: dataclasses.asdict(found) for name, found in packing.items()}, "duplicates": repeats}
    return dataclasses.asdict(summary) | extra, lines


def describe_file(path: Path, options: CorpusOptions) -> Description:
    """Return what a file of sequences would be as a corpus."""
    from proteinlm.corpus import summarise_fasta
    from proteinlm.sequence.wording import listed

    summary = summarise_fasta([path], progress=TerminalProgress())
    counts = {
        "would be dropped": summary.screening.dropped,
        "noted": summary.screening.noted,
        "met": summary.reading,
        "replaced residues": summary.substitutions,
    }
    kept = {"kept": summary.sequences}
    lines = [f"{name}: {listed(found)}" for name, found in counts.items() if found]
    lines += ["", *_table({"kept": _columns(summary.sequences)}), "", *_histogram(kept), "", *_composition(kept)]
    _draw(options.picture, kept)
    return dataclasses.asdict(summary), lines


def _packing(corpus: Corpus, window_length: int) -> dict[str, PackingEfficiency]:
    from proteinlm.batches.packing import PackingConfig
    from proteinlm.batches.packing_efficiency import packing_efficiency

    config = PackingConfig(window_length=window_length)
    return {name: packing_efficiency(corpus.sequences(name).lengths, config) for name in corpus.splits}


def _draw(picture: Path | None, splits: Mapping[str, SequenceSummary]) -> None:
    if picture is None:
        return
    from proteinlm.analysis.figures import draw_lengths
    from proteinlm.outputs import file_beside

    with file_beside(picture) as place:
        place.write_bytes(draw_lengths(splits))


def _columns(summary: SequenceSummary) -> dict[str, str]:
    cells = {
        "sequences": f"{summary.num_sequences:,}",
        "residues": f"{summary.num_residues:,}",
        "shortest": f"{summary.shortest:,}",
        **{f"{name} %": f"{value:,.0f}" for name, value in summary.percentiles.items()},
        "longest": f"{summary.longest:,}",
    }
    for length, cut in summary.cuts.items():
        cells[f"longer than {int(length):,}"] = f"{cut.num_longer:,} ({cut.share_longer:.2%})"
        cells[f"residues beyond {int(length):,}"] = f"{cut.share_beyond:.2%}"
    return cells | {"ambiguous": f"{summary.ambiguous:.3%}"}


def _cluster_cells(clusters: Mapping[str, ClusterCount], split: str) -> dict[str, str]:
    if not clusters:
        return {}
    found = clusters.get(split)
    return {
        "clusters": f"{found.num_clusters:,}" if found else "",
        "largest cluster": f"{found.largest:,}" if found else "",
    }


def _packing_cells(found: PackingEfficiency) -> dict[str, str]:
    return {
        f"windows of {found.window_length:,}": f"{found.num_windows:,}",
        "filled": f"{found.fill:.2%}" if found.num_windows else "",
    }


def _samples(packing: Mapping[str, PackingEfficiency]) -> list[str]:
    return [
        f"windows of {name}: of {found.num_sequences:,} sequences drawn from {found.num_all:,}"
        for name, found in packing.items()
        if found.num_sequences < found.num_all
    ]


def _table(columns: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return lines of a table: one row for a quantity, one column for a split."""
    names = list(next(iter(columns.values())))
    head = max(len(name) for name in names)
    widths = {split: max(len(split), *(len(cell) for cell in cells.values())) for split, cells in columns.items()}
    lines = [" " * head + "".join(f"  {split:>{widths[split]}}" for split in columns)]
    return lines + [
        f"{name:<{head}}" + "".join(f"  {cells[name]:>{widths[split]}}" for split, cells in columns.items())
        for name in names
    ]


def _histogram(splits: Mapping[str, SequenceSummary]) -> list[str]:
    """Return lines of a histogram by doublings of the length, with a bar for the first split."""
    found = [split for split in splits.values() if split.num_sequences]
    if not found:
        return []
    shortest, longest = min(split.shortest for split in found), max(split.longest for split in found)
    edges = [1 << power for power in range(shortest.bit_length() - 1, longest.bit_length() + 1)]
    shares = {name: _shares(split, edges) for name, split in splits.items()}
    first = next(iter(shares.values()))
    scale = _BAR / max(*first, 1e-9)
    labels = [f"{low:,} to {high - 1:,}" for low, high in pairwise(edges)]
    head = max(len("residues"), *map(len, labels))
    lines = [f"{'residues':<{head}}" + "".join(f"  {name:>{max(6, len(name))}}" for name in shares)]
    for row, label in enumerate(labels):
        cells = "".join(f"  {share[row]:>{max(6, len(name))}.1%}" for name, share in shares.items())
        lines.append(f"{label:<{head}}{cells}  {'#' * round(first[row] * scale)}".rstrip())
    return lines


def _shares(split: SequenceSummary, edges: list[int]) -> list[float]:
    counts = dict(zip(split.histogram.edges, split.histogram.counts, strict=False))
    return [
        sum(count for edge, count in counts.items() if low <= edge < high) / max(1, split.num_sequences)
        for low, high in pairwise(edges)
    ]


def _composition(splits: Mapping[str, SequenceSummary]) -> list[str]:
    width = max(len(name) for name in splits)
    return [
        f"composition {name:<{width}}  "
        + " ".join(f"{letter} {share:.1%}" for letter, share in found.composition.items())
        for name, found in splits.items()
        if found.composition
    ]


def _leaks(leaks: Mapping[str, Any]) -> Iterable[str]:
    for name, leak in leaks.items():
        relatives = (
            "" if leak.same_cluster is None else f", {leak.same_cluster:,} have a relative of their cluster there"
        )
        yield f"{name}: {leak.equal_sequences:,} sequences are also in train{relatives}"
