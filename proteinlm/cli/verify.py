"""``proteinlm verify``: whether a corpus is what was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from proteinlm.cli.terminal import TerminalProgress

EXAMPLE = """\b
Example:
  proteinlm verify corpus/
"""


@click.command(epilog=EXAMPLE)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(corpus: Path, as_json: bool) -> None:
    """Check every digest of CORPUS and name the first bytes that are damaged.

    Reads each shard again. Exits with 1 and names the shard, and the bytes of its file, where the
    content is not the one that was written.
    """
    from proteinlm.corpus import open_corpus, verify_corpus

    opened = open_corpus(corpus)
    report = verify_corpus(opened, progress=TerminalProgress())
    if as_json:
        click.echo(json.dumps({"path": str(corpus), "digest": opened.digest, **dataclasses.asdict(report)}))
        return
    click.echo(
        f"{corpus}: whole: {report.num_sequences:,} sequences, {report.num_residues:,} residues, "
        f"{report.num_shards} shards, sha256 {opened.digest[:12]}…"
    )
