"""``proteinlm ingest``: sequence files into a corpus."""

from __future__ import annotations

import glob
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.options import ByteSize
from proteinlm.cli.terminal import TerminalProgress, note, seconds
from proteinlm.errors import FastaError

if TYPE_CHECKING:
    from proteinlm.corpus import Effort, HeldOutFiles, IngestionConfig, IngestionReport
    from proteinlm.corpus.layout import CorpusIndex

# option -> where its value stands among the settings
_SETTINGS = {
    "gaps": ("reading", "gaps"),
    "strict": ("reading", "strict"),
    "identifier_column": ("reading", "identifier_column"),
    "sequence_column": ("reading", "sequence_column"),
    "min_length": ("screening", "min_length"),
    "max_length": ("screening", "max_length"),
    "max_ambiguous": ("screening", "max_ambiguous"),
    "drop_fragments": ("screening", "drop_fragments"),
    "duplicates": ("screening", "duplicates"),
    "validation_share": ("splitting", "validation_share"),
    "ood_share": ("splitting", "ood_share"),
    "seed": ("splitting", "seed"),
    "validation_by": ("splitting", "validation_by"),
    "largest_clusters": ("splitting", "largest_clusters"),
    "cluster_source": ("splitting", "cluster_source"),
    "cluster_columns": ("splitting", "cluster_columns"),
}


EXAMPLE = """\b
Example:
  proteinlm ingest uniref50.fasta.gz -o corpus/ --clusters clusters.tsv --validation-share 0.01
"""


@click.command(epilog=EXAMPLE)
@click.argument("files", nargs=-1)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The corpus folder to make.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Take files, clusters and splits from this manifest, by path or name, and check every digest and count.",
)
@click.option(
    "--clusters",
    type=click.Path(path_type=Path),
    help="Table representative<TAB>member, or UniRef's XML; whole clusters are held out as validation_ood.",
)
@click.option("--cluster-columns", metavar="CLUSTER,MEMBER", help="Columns of the table of clusters, by name.")
@click.option(
    "--cluster-source",
    type=click.Choice(["file", "header"]),
    help="Where clusters are told: in --clusters, or by identifiers of UniRef.",
)
@click.option("--validation-share", type=float, help="Share of the proteins to hold out at random.")
@click.option("--ood-share", type=float, help="Share of the clusters to hold out whole.")
@click.option("--largest-clusters", type=int, help="Hold out so many of the largest clusters, and not a share.")
@click.option(
    "--validation-by",
    type=click.Choice(["sequence", "identifier", "cluster"]),
    help="What is hashed to draw --validation-share.",
)
@click.option("--held-out", type=click.Path(path_type=Path), help="Hold out the proteins named here, one a line.")
@click.option(
    "--held-out-families",
    type=click.Path(path_type=Path),
    help="Hold out the families named here: TOML, or one a line; a path, or performer_pfam_families.",
)
@click.option(
    "--families",
    type=click.Path(path_type=Path),
    help="Table identifier<TAB>family, or Pfam-A.regions.tsv, for --held-out-families.",
)
@click.option("--seed", type=int, help="Seed of the hash that fills the splits.")
@click.option("--min-length", type=int, help="Drop shorter sequences.  [residues]")
@click.option("--max-length", type=int, help="Drop longer sequences.  [residues]")
@click.option("--max-ambiguous", type=float, help="Drop sequences with a larger share of B J O U X Z and gaps.")
@click.option("--drop-fragments", is_flag=True, default=None, help="Drop what its header calls a fragment.")
@click.option(
    "--duplicates",
    type=click.Choice(["count", "drop", "ignore"]),
    help="What to do with sequences and names met before: count them, drop equal sequences, or do not look.",
)
@click.option("--drop-duplicates", is_flag=True, help="Keep the first of exactly equal sequences: --duplicates drop.")
@click.option("--gaps", type=click.Choice(["drop", "keep", "refuse"]), help="What to do with - . ~ in a sequence.")
@click.option("--strict", is_flag=True, default=None, help="Refuse J and inner stops, which otherwise become X.")
@click.option("--identifier-column", help="Column of a table that holds identifiers, if its name is unusual.")
@click.option("--sequence-column", help="Column of a table that holds sequences, if its name is unusual.")
@click.option("--shard-residues", type=int, help="Upper size of a shard file.  [residues]")
@click.option("--source-sha256", is_flag=True, default=None, help="Take a sha256 of every file too, which is slow.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processors to use; by default all that it may use.")
@click.option("--memory", type=ByteSize(), help="For duplicates and tables of clusters, such as 4GiB.  [default: 1GiB]")
@click.option("--resume", is_flag=True, help="Go on with an ingestion that broke off, if one did.")
@click.option("--restart", is_flag=True, help="Throw away what an ingestion that broke off has left.")
@click.option("--json", "as_json", is_flag=True, help="Print the index of the corpus to stdout.")
def command(
    files: tuple[str, ...],
    output: Path,
    manifest: Path | None,
    clusters: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Read FILES of sequences into a corpus of shards.

    FILES are FASTA, UniProt's flat files or XML, or tables (Parquet, CSV, TSV), plain or compressed
    (gzip, xz, bzip2, zstandard), all told by content; patterns such as 'uniref/*.gz'; or - for
    standard input. Nothing is dropped without a count.
    """
    from proteinlm import config as configuration
    from proteinlm.shipped import find_manifest

    if bool(files) == bool(manifest):
        raise click.UsageError("name FILES to read, or one --manifest, and not both")
    if manifest and clusters:
        raise click.UsageError("--clusters comes from the manifest; leave one of the two out")
    manifest = find_manifest(manifest) if manifest else None
    by_name, effort = _held_out(options), _effort(options)
    _join_drop_duplicates(options)
    _check_cluster_options(options, has_clusters=clusters is not None, may_have_clusters=bool(clusters or manifest))
    start = time.perf_counter()
    config = _config(options, manifest)
    report = _ingested(files, manifest, output, config=config, clusters=clusters, held_out=by_name, effort=effort)
    for line in _lines(report) + _warnings(report, is_ood_share_typed=options["ood_share"] is not None):
        note(line)
    note(_time_line(report, time.perf_counter() - start))
    note(f"took {seconds(start)}")
    if as_json:
        click.echo(json.dumps(configuration.to_table(report.index), indent=1))


def _held_out(options: dict[str, Any]) -> HeldOutFiles | None:
    """Take the files that hold out by name from among the options."""
    from proteinlm.corpus import HeldOutFiles
    from proteinlm.shipped import find_families

    names, families, membership = (options.pop(name) for name in ("held_out", "held_out_families", "families"))
    if bool(families) != bool(membership):
        raise click.UsageError("--held-out-families names what to hold out and --families who is in it; name both")
    if names is None and membership is None:
        return None
    return HeldOutFiles(names=names, families=families and find_families(families), membership=membership)


def _effort(options: dict[str, Any]) -> Effort:
    """Take how the work is to be done from among the options."""
    from proteinlm.corpus import MEMORY_BYTES, Effort

    jobs, memory, resume, restart = (options.pop(name) for name in ("jobs", "memory", "resume", "restart"))
    if resume and restart:
        raise click.UsageError("--resume goes on with what --restart throws away; leave one of the two out")
    return Effort(jobs=jobs, memory_bytes=memory or MEMORY_BYTES, resume=resume, restart=restart)


def _join_drop_duplicates(options: dict[str, Any]) -> None:
    if options.pop("drop_duplicates"):
        if options["duplicates"] not in {None, "drop"}:
            raise click.UsageError(f"--drop-duplicates and --duplicates {options['duplicates']} exclude each other")
        options["duplicates"] = "drop"


def _ingested(files: tuple[str, ...], manifest: Path | None, output: Path, **arguments: Any) -> IngestionReport:
    from proteinlm.corpus import ingest, ingest_manifest, unfinished

    progress = TerminalProgress()
    try:
        if manifest:
            del arguments["clusters"]
            return ingest_manifest(manifest, output, progress=progress, **arguments)
        return ingest(_expanded(files), output, progress=progress, **arguments)
    except (KeyboardInterrupt, SystemExit):
        if found := unfinished(output):
            note(f"{found} is kept; go on with it by --resume, or throw it away by --restart")
        raise


def _expanded(files: tuple[str, ...]) -> Iterator[Path]:
    """Yield the files, and in the place of a pattern the files that it stands for, in order of their names."""
    from proteinlm.sequence.compression import STDIN

    for name in files:
        if os.path.isdir(name):
            raise FastaError(f"{name}: is a folder; {_files_of_folder(name)}")
        if not glob.has_magic(name) or os.path.exists(name):
            # a Path drops the ./ that tells a file from standard input
            yield Path(name if name == STDIN or Path(name) != Path(STDIN) else os.path.abspath(name))
        elif found := sorted(glob.glob(name, recursive=True)):
            yield from map(Path, found)
        else:
            raise FastaError(f"{name}: no file has a name like this")


def _files_of_folder(folder: str) -> str:
    """Say how to name the files of a folder, by the ending that most have."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    except OSError as error:
        return f"its files cannot be listed ({error.strerror})"
    endings = Counter("".join(Path(name).suffixes[-2:]) for name in names)
    if not endings:
        return "there is no file in it to name"
    ending, count = endings.most_common(1)[0]
    return f"name files in it, such as '{os.path.join(folder, f'*{ending}')}' for {count:,} of its {len(names):,} files"


def _time_line(report: IngestionReport, elapsed: float) -> str:
    """Say where the time went; stages that ran beside each other sum up to more than was waited for."""
    from proteinlm.sequence.timings import COMPILE

    # it is done once, and says nothing of how fast another run will be
    elapsed -= report.timings.get(COMPILE, 0.0)
    stages = ", ".join(f"{stage} {spent:.1f} s" for stage, spent in report.timings.items() if spent >= 0.05)
    return f"{report.num_bytes / max(elapsed, 1e-9) / 1e6:,.1f} MB/s" + (f" (work: {stages})" if stages else "")


def _check_cluster_options(options: dict[str, Any], *, has_clusters: bool, may_have_clusters: bool) -> None:
    """Refuse options of clusters that cannot go together."""
    if options["ood_share"] is not None and options["largest_clusters"] is not None:
        raise click.UsageError("--ood-share and --largest-clusters are two rules for one split; leave one of them out")
    if has_clusters and options["cluster_source"] == "header":
        raise click.UsageError("--cluster-source header takes no --clusters; leave one of the two out")
    for name in ("largest_clusters", "cluster_columns"):
        if options[name] is not None and not may_have_clusters:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --clusters, the table of who is in which")
    if options["validation_by"] == "cluster" and not may_have_clusters and options["cluster_source"] != "header":
        raise click.UsageError("--validation-by cluster needs --clusters or --cluster-source header")


def _config(options: dict[str, Any], manifest: Path | None) -> IngestionConfig:
    """Return the settings of the manifest or the defaults, with what was typed on top."""
    from proteinlm import config as configuration
    from proteinlm.corpus import IngestionConfig, read_manifest

    base = IngestionConfig(splitting=read_manifest(manifest).splitting) if manifest else IngestionConfig()
    table = configuration.to_table(base)
    typed = {name: value for name, value in options.items() if value is not None}
    if "ood_share" in typed:
        # what is typed takes the place of the manifest's rule
        typed["largest_clusters"] = 0
    if "cluster_columns" in typed:
        typed["cluster_columns"] = typed["cluster_columns"].split(",")
    for name, value in typed.items():
        *path, last = _SETTINGS.get(name, (name,))
        inner = table
        for step in path:
            inner = inner[step]
        inner[last] = value
    return configuration.parse(IngestionConfig, table, source="ingest")


def _lines(report: IngestionReport) -> list[str]:
    """Return what was done, with counts, as people read it."""
    from proteinlm.sequence.wording import listed

    index = report.index
    screening = index.screening
    dropped = f"{sum(screening.dropped.values()):,} dropped"
    dropped += f": {listed(screening.dropped)}" if screening.dropped else ""
    lines = [
        f"read {screening.num_read:,} records, {sum(s.num_residues for s in index.sources):,} residues "
        f"from {', '.join(source.name for source in index.sources)} ({dropped})"
    ]
    lines += [f"met: {listed(index.reading)}"] if index.reading else []
    lines += [f"replaced residues: {listed(index.substitutions)}"] if index.substitutions else []
    lines += [f"noted, and kept: {listed(screening.noted)}"] if screening.noted else []
    for name, split in index.splits.items():
        lines.append(f"{name}: {split.num_sequences:,} sequences, {split.num_residues:,} residues{_leak(report, name)}")
    if held_out := index.held_out:
        lines.append(
            f"held out by name: {held_out.num_listed:,} listed, {held_out.num_of_families:,} of held-out families, "
            f"{held_out.num_relatives:,} relatives by cluster"
        )
    num_shards = sum(len(split.shards) for split in index.splits.values())
    lines.append(
        f"wrote {screening.num_kept:,} sequences, {sum(s.num_residues for s in index.splits.values()):,} residues "
        f"to {report.path} ({num_shards} shard{'s' * (num_shards != 1)}, sha256 {index.digest[:12]}…)"
    )
    return lines


def _leak(report: IngestionReport, split: str) -> str:
    if (leak := report.index.leaks.get(split)) is None:
        return ""
    relatives = "" if leak.same_cluster is None else f", {leak.same_cluster:,} of a cluster in train"
    return f" ({leak.equal_sequences:,} equal to one in train{relatives})"


def _warnings(report: IngestionReport, *, is_ood_share_typed: bool) -> list[str]:
    """Return what the person who ingests should look at before training."""
    from proteinlm.corpus.layout import SCREENING_FILE
    from proteinlm.sequence.screening import NUCLEOTIDES
    from proteinlm.sequence.wording import nucleotide_warning

    index = report.index
    warnings = [
        f"{name} is empty; a larger share or more proteins would fill it"
        for name, split in index.splits.items()
        if not split.num_sequences
    ]
    if count := index.screening.noted.get(NUCLEOTIDES):
        warnings.append(f"{nucleotide_warning(count)}; {report.path / SCREENING_FILE} names each")
    if is_ood_share_typed and index.clusters is None:
        warnings.append("--ood-share has no effect without --clusters")
    if index.clusters is not None and (count := index.clusters.num_unclustered):
        place = "are in no cluster of the table" if index.clusters.sha256 else "have no identifier of UniRef"
        warnings.append(f"{count:,} proteins {place}, so they are held out by name at most")
    warnings += _held_out_warnings(index)
    for name, leak in index.leaks.items():
        if leak.equal_sequences:
            warnings.append(f"{leak.equal_sequences:,} proteins of {name} are also in train; {_cure(index, name)}")
    return [f"warning: {warning}" for warning in warnings]


def _cure(index: CorpusIndex, split: str) -> str:
    """Return what keeps equal sequences together."""
    from proteinlm.corpus import VALIDATION_IID

    if split == VALIDATION_IID and index.settings["splitting"]["validation_by"] == "identifier":
        return "--validation-by sequence keeps equal ones together"
    has_table = index.clusters is not None and bool(index.clusters.sha256)
    return "mend the table of clusters" if has_table else "hold out their equals too"


def _held_out_warnings(index: CorpusIndex) -> list[str]:
    if (held_out := index.held_out) is None:
        return []
    warnings = []
    if held_out.num_unmatched:
        warnings.append(
            f"{held_out.num_unmatched:,} of the {held_out.num_names:,} names of --held-out are those of no protein kept"
        )
    if empty := [family for family, count in held_out.families.items() if not count]:
        shown = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        warnings.append(f"{len(empty):,} of the {len(held_out.families):,} families have no row in --families: {shown}")
    return warnings
