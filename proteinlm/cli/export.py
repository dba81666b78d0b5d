"""``proteinlm export``: a corpus as FASTA."""

from __future__ import annotations

from pathlib import Path

import click

from proteinlm.cli.terminal import TerminalProgress, note

EXAMPLE = """\b
Example:
  proteinlm export corpus/ --split validation_iid -o validation.fasta.gz
"""


@click.command(epilog=EXAMPLE)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The FASTA file to write, or -.")
@click.option("--split", "splits", multiple=True, help="Write this split only; may be repeated.  [default: all]")
@click.option(
    "--line-width",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Residues in a line; 0 writes a sequence in one.",
)
def command(corpus: Path, output: Path, splits: tuple[str, ...], line_width: int) -> None:
    """Write the sequences of CORPUS as FASTA, residue by residue as they are in the shards.

    Headers are the identifiers that the corpus holds. A name that ends in .gz, .xz, .bz2 or .zst is
    compressed so; - is standard output.
    """
    from proteinlm.corpus import export_fasta, open_corpus

    report = export_fasta(
        open_corpus(corpus), output, splits=splits or None, line_width=line_width, progress=TerminalProgress()
    )
    where = "standard output" if str(output) == "-" else output
    note(
        f"wrote {report.num_sequences:,} sequences, {report.num_residues:,} residues of {', '.join(report.splits)} "
        f"to {where}"
    )
