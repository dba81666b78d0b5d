"""``proteinlm evaluate``: a checkpoint on the validation splits of a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import click

from proteinlm.cli.options import set_attention_option, threads_option
from proteinlm.cli.terminal import TerminalProgress, note

EXAMPLE = """\b
Example:
  proteinlm evaluate runs/first --corpus corpus/ --set kind=softmax
"""


@click.command(epilog=EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="Corpus made by proteinlm ingest.")
@set_attention_option
@click.option("--device", default="cpu", show_default=True, help="Device to run on.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(checkpoint: Path, corpus: Path, assignments: tuple[str, ...], device: str, as_json: bool) -> None:
    """Measure a CHECKPOINT on the validation splits of a corpus.

    Every hidden residue is shown as <mask>, and the same residues are hidden whatever the model.
    With --set kind=softmax the same weights run with exact attention.
    """
    from proteinlm.recipe import evaluate_checkpoint

    note(f"evaluating {checkpoint} on {corpus}")
    scores = evaluate_checkpoint(checkpoint, corpus, attention=assignments, device=device, progress=TerminalProgress())
    if not scores.is_training_corpus:
        note("the checkpoint was trained on another corpus: proteins that are validated here may have been trained on")
    if not scores.results:
        note(f"{corpus}: has no validation proteins; ingest with a larger --validation-share")
    if as_json:
        click.echo(json.dumps([result.figures() for result in scores.results], indent=2))
        return
    for score in scores.results:
        click.echo(score)
