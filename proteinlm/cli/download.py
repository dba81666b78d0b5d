"""``proteinlm download``: a corpus release from its publisher."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click

from proteinlm.cli.terminal import TerminalProgress, note, seconds

EXAMPLE = """\b
Example:
  proteinlm download uniref50 -o uniref50/
"""


@click.command(epilog=EXAMPLE)
@click.argument("manifest")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder to fetch into.")
@click.option(
    "--num-retries",
    type=click.IntRange(min=0),
    help="Attempts in a row that may bring nothing before giving up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched to stdout.")
def command(manifest: str, output: Path, num_retries: int | None, as_json: bool) -> None:
    """Fetch a corpus release from its publisher, and check what came.

    MANIFEST is a path, or one of swissprot, trembl, uniref50, uniref90, uniref100. An interrupted
    download goes on where it ended when the command is typed again; a file that is whole is checked and
    not fetched again. The folder then has a manifest that pins the release, for proteinlm ingest.
    """
    from proteinlm.corpus import DownloadConfig, download

    start = time.perf_counter()
    config = DownloadConfig() if num_retries is None else DownloadConfig(num_retries=num_retries)
    report = download(manifest, output, config=config, progress=TerminalProgress())
    for file in report.files:
        came = f"{file.num_fetched:,} fetched, {file.num_retries} retries" if file.is_new else "was there already"
        note(f"{file.path}: {file.num_bytes:,} bytes ({came}), sha256 {file.sha256[:12]}…")
    note(f"release {report.release} of {report.name}; took {seconds(start)}")
    note(f"ingest it with: proteinlm ingest --manifest {report.manifest} -o corpus/")
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report), default=str, indent=1))
