"""``proteinlm compare``: how far FAVOR+ is from exact softmax, with the same weights."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.options import SpaceSeparatedCommand, SpaceSeparatedOption, threads_option
from proteinlm.cli.terminal import TerminalProgress, note, seconds

if TYPE_CHECKING:
    from proteinlm.analysis.results import ComparisonConfig, ComparisonReport

EPILOG = """\b
Examples:
  proteinlm compare sequences.fasta --checkpoint runs/first -o report/
  proteinlm compare sequences.fasta --checkpoint runs/first -o report/ --features 64 128 256 --max-sequences 6
"""


@click.command(
    cls=SpaceSeparatedCommand,
    short_help="Measure how far approximate attention is from exact softmax.",
    epilog=EPILOG,
)
@click.argument("sequences", nargs=-1, required=True, metavar="FASTA...")
@click.option("--checkpoint", required=True, metavar="FOLDER", help="A run folder or a checkpoint folder.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FOLDER", help="Report folder to make."
)
@click.option(
    "--features",
    "num_random_features",
    cls=SpaceSeparatedOption,
    type=click.IntRange(min=1),
    default=[16, 32, 64, 128, 256, 512],
    show_default="16 32 64 128 256 512",
    metavar="INTEGER...",
    help="Numbers of random features to measure.",
)
@click.option(
    "--draws",
    "num_draws",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Independent draws of the features.",
)
@click.option(
    "--max-sequences",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Sequences to compare, drawn at random by the seed.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Residues; longer proteins are left out of the maps, and counted.",
)
@click.option(
    "--separation",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    help="Residues between the partners of an entry in the top-L overlap, at least.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Names the drawn sequences and masked residues.")
@click.option("--device", default="auto", show_default=True, help="As torch names it; auto: a GPU if there is one.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print verdict, summary and counts as JSON.")
def command(sequences: tuple[str, ...], checkpoint: str, output: Path, device: str, as_json: bool, **of: Any) -> None:
    """Measure how far FAVOR+ is from exact softmax attention, with the same weights.

    Writes report.html, report.json and figures/ to a folder. FASTA files may be compressed; - reads
    standard input.
    """
    from proteinlm.analysis.comparison import compare_checkpoint
    from proteinlm.analysis.report import fill_report
    from proteinlm.analysis.results import ComparisonConfig
    from proteinlm.outputs import folder_beside
    from proteinlm.sequence.fasta import read_fasta

    start = time.perf_counter()
    settings = ComparisonConfig(**of)
    # the folder comes first: a place that cannot be written is found before the work, not after it
    with folder_beside(output) as folder:
        report = compare_checkpoint(
            read_fasta(sequences), checkpoint, settings, device=device, progress=TerminalProgress()
        )
        fill_report(report, folder)
    _say(report, settings)
    _print(report, as_json=as_json)
    note(f"compared {len(report.proteins):,} proteins in {seconds(start)}; open {output / 'report.html'}")


def _say(report: ComparisonReport, settings: ComparisonConfig) -> None:
    from proteinlm.sequence.wording import listed, nucleotide_warning

    counts = report.counts
    reasons = {"not drawn": counts.num_not_drawn, "without residues": counts.num_empty}
    left_out = listed({reason: count for reason, count in reasons.items() if count})
    note(f"read {counts.num_read:,} records" + (f" ({left_out})" if left_out else ""))
    if counts.num_too_long:
        note(
            f"left {counts.num_too_long:,} of {len(report.proteins):,} proteins out of the maps: they are longer than "
            f"--max-length {settings.max_length:,}; the end-to-end figures have them"
        )
    if counts.substitutions:
        note(f"replaced residues ({listed(counts.substitutions)})")
    if counts.num_nucleotides:
        note(f"warning: {nucleotide_warning(counts.num_nucleotides)}")


def _print(report: ComparisonReport, *, as_json: bool) -> None:
    from proteinlm.analysis.report import format_summary, report_table
    from proteinlm.analysis.results import summary_rows

    if as_json:
        table = report_table(report)
        parts = ("schema_version", "verdict", "summary", "counts", "settings")
        click.echo(json.dumps({name: value for name, value in table.items() if name in parts}, ensure_ascii=False))
        return
    click.echo(format_summary(summary_rows(report)))
    click.echo()
    click.echo(report_table(report)["verdict"]["headline"])
