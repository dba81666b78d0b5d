"""``proteinlm embed``: embeddings of the sequences in FASTA files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.options import SpaceSeparatedCommand, SpaceSeparatedOption, set_attention_option, threads_option
from proteinlm.cli.terminal import TerminalProgress, note
from proteinlm.errors import InUseError, ProteinLMError

if TYPE_CHECKING:
    from proteinlm.inference.embedding_files import Output
    from proteinlm.inference.embedding_run import EmbeddingReport, InputSurvey
    from proteinlm.inference.embeddings import EmbeddingConfig

EPILOG = """\b
Examples:
  proteinlm embed sequences.fasta --checkpoint runs/first -o embeddings.h5
  proteinlm embed sequences.fasta --checkpoint runs/first -o embeddings.h5 --include mean per_tok --resume
"""


@click.command(
    cls=SpaceSeparatedCommand,
    short_help="Write embeddings of the sequences in a FASTA file.",
    epilog=EPILOG,
)
@click.argument("sequences", nargs=-1, required=True, metavar="FASTA...")
@click.option("--checkpoint", required=True, metavar="FOLDER", help="A run folder or a checkpoint folder.")
@click.option("-o", "--output", required=True, metavar="PATH", help="File in .h5, .npz or .pt, or a folder/.")
@click.option(
    "--include",
    cls=SpaceSeparatedOption,
    type=click.Choice(["mean", "per_tok", "bos"]),
    default=["mean"],
    show_default=True,
    metavar="[mean|per_tok|bos]...",
    help="What to write: mean over the residues, one row a residue, the start token.",
)
@click.option(
    "--repr-layers",
    cls=SpaceSeparatedOption,
    type=int,
    default=[-1],
    show_default=True,
    metavar="INTEGER...",
    help="Layers, 0 (embedding) to the last, or negative from the end.",
)
@click.option(
    "--toks-per-batch", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens in a batch."
)
@click.option(
    "--truncation-seq-length", type=click.IntRange(min=1), help="Residues kept of a longer protein; all by default."
)
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float32", show_default=True, help="Stored as."
)
@click.option(
    "--id",
    "naming",
    type=click.Choice(["first-word", "accession", "full"]),
    default="accession",
    show_default=True,
    help="Part of the header that names a protein.",
)
@click.option(
    "--layout",
    type=click.Choice(["uniprot", "flat"]),
    default="uniprot",
    show_default=True,
    help="One array a protein, or all rows in one.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="When a sequence fails: stop, or list it in PATH.failed.tsv and exit with 1.",
)
@set_attention_option
@click.option("--device", default="auto", show_default=True, help="As torch names it; auto: a GPU if there is one.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Write embeddings of the sequences in FASTA files, in their order and at full length.

    FASTA files may be compressed; - reads standard input.
    """
    from proteinlm.inference.embedding_files import output_of
    from proteinlm.inference.embeddings import EmbeddingConfig

    fields = {field.name for field in dataclasses.fields(EmbeddingConfig)}
    config = EmbeddingConfig(**{name: value for name, value in options.items() if name in fields})
    output = output_of(options["output"], options["layout"])
    try:
        report = _run(output, config, options)
    except InUseError:
        raise
    except (ProteinLMError, KeyboardInterrupt, SystemExit):
        # a Path raises where it may not look, and what went wrong before is to be told
        if os.path.isdir(output.partial_path):
            note(f"{output.partial_path}: keeps what is done; go on with --resume, or remove it")
        raise
    _say(report)
    if options["as_json"]:
        click.echo(json.dumps(dataclasses.asdict(report), default=str))
    if report.num_failed:
        ctx.exit(1)


def _run(output: Output, config: EmbeddingConfig, options: dict[str, Any]) -> EmbeddingReport:
    from proteinlm.inference.embedding_run import RunConfig, can_be_surveyed, embed_to_files, survey
    from proteinlm.inference.pretrained import load
    from proteinlm.sequence.fasta import read_fasta

    if output.container == "pt" and output.layout == "flat":
        note("--layout has no effect on .pt files")
    paths = options["sequences"]
    pretrained = load(options["checkpoint"], device=options["device"]).with_attention(options["assignments"])
    found = None
    if can_be_surveyed(paths):
        found = survey(paths, on_error=options["on_error"], progress=TerminalProgress())
        _say_found(found)
    report = embed_to_files(
        pretrained,
        read_fasta(paths),
        output,
        config,
        RunConfig(naming=options["naming"], on_error=options["on_error"], resume=options["resume"]),
        num_residues=found.num_residues if found else None,
        progress=TerminalProgress(),
    )
    if found is None:
        _warn_of_nucleotides(report.num_nucleotides)
    return report


def _say_found(found: InputSurvey) -> None:
    note(f"read {found.num_sequences:,} sequences, {found.num_residues:,} residues{_in_brackets(found.treatments)}")
    _warn_of_nucleotides(found.num_nucleotides)


def _warn_of_nucleotides(count: int) -> None:
    from proteinlm.sequence.wording import nucleotide_warning

    if count:
        note(f"warning: {nucleotide_warning(count)}")


def _say(report: EmbeddingReport) -> None:
    """Print what was done, with counts and where it is."""
    if report.num_resumed:
        note(f"took over {report.num_resumed:,} sequences from the interrupted run")
    if report.substitutions:
        note(f"replaced residues{_in_brackets(report.substitutions)}")
    if report.num_cut:
        note(f"cut {report.num_cut_residues:,} residues off the ends of {report.num_cut:,} sequences")
    if report.num_repeated:
        note(f"{report.num_repeated:,} identifiers occur more than once; the later ones end in #2, #3 …")
    if report.num_beyond_window:
        note(f"{report.num_beyond_window:,} proteins are longer than the windows the model was trained on")
    if report.failed_path:
        note(f"{report.num_failed:,} sequences failed; see {report.failed_path}")
    speed = (report.num_residues - report.num_residues_resumed) / max(report.seconds, 1e-9)
    note(
        f"embedded {report.num_sequences:,} sequences, {report.num_residues:,} residues "
        f"in {report.seconds:,.1f} s on {report.device} ({speed:,.0f} residues/s)"
    )
    for file in report.files:
        layers = ", ".join(map(str, file.layers))
        note(f"wrote {' and '.join(file.kinds)} of layer {layers} to {file.path}")


def _in_brackets(counts: Mapping[str, int]) -> str:
    from proteinlm.sequence.wording import listed

    return f" ({listed(counts)})" if counts else ""
