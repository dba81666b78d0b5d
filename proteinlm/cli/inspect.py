"""``proteinlm inspect``: what a corpus, checkpoint, run, recipe, manifest or FASTA file is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.terminal import TerminalProgress, note

if TYPE_CHECKING:
    from proteinlm.corpus.manifest import ManifestFile
    from proteinlm.corpus.summary import SequenceSummary

EXAMPLE = """\b
Example:
  proteinlm inspect corpus/
"""

# a table and the lines that people read of it
Description = tuple[dict[str, Any], list[str]]


@click.command(epilog=EXAMPLE)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every shard of a corpus again, as proteinlm verify does.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: Path, verify: bool, as_json: bool) -> None:
    """Say what PATH is and what it holds.

    PATH is a corpus, a checkpoint, the folder of a run, a recipe or manifest (.toml), or a FASTA file.
    """
    kind, (table, lines) = _describe(path)
    if verify:
        _verify(path, kind)
    if as_json:
        click.echo(json.dumps({"kind": kind, "path": str(path), **table}, indent=2))
    else:
        click.echo("\n".join([f"{path}: {kind}", *(f"  {line}" if line else "" for line in lines)]))


def _verify(path: Path, kind: str) -> None:
    from proteinlm.corpus import open_corpus, verify_corpus

    if kind != "corpus":
        raise click.UsageError(f"--verify is for a corpus, and {path} is a {kind}")
    verify_corpus(open_corpus(path), progress=TerminalProgress())
    note(f"every shard has the sha256 that {path} says")


def _describe(path: Path) -> tuple[str, Description]:
    from proteinlm.errors import ConfigError

    if path.is_dir():
        return _describe_folder(path)
    if path.suffix == ".toml":
        from proteinlm import config
        from proteinlm.corpus import is_manifest

        return ("manifest", _manifest(path)) if is_manifest(config.read_table(path)) else ("recipe", _recipe(path))
    if str(path) != "-" and not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    return "FASTA", _fasta(path)


def _describe_folder(path: Path) -> tuple[str, Description]:
    from proteinlm.corpus.layout import INDEX_FILE
    from proteinlm.errors import ConfigError

    # a corpus is told without loading torch
    if (path / INDEX_FILE).exists():
        return "corpus", _corpus(path)
    from proteinlm.model.checkpoint import CHECKPOINT_FOLDER, WEIGHTS_FILE
    from proteinlm.recipe import RUN_FILE
    from proteinlm.training.journal import METRICS_FILE

    if (path / METRICS_FILE).exists() or (path / RUN_FILE).exists():
        return "run", _run(path)
    if (path / WEIGHTS_FILE).exists() or (path / CHECKPOINT_FOLDER).is_dir():
        return "checkpoint", _checkpoint(path)
    raise ConfigError(f"{path}: is no corpus ({INDEX_FILE}), checkpoint ({WEIGHTS_FILE}) or run ({METRICS_FILE})")


def _corpus(path: Path) -> Description:
    from proteinlm.corpus import open_corpus, summarise_corpus
    from proteinlm.sequence.wording import listed

    summary = summarise_corpus(open_corpus(path))
    origin = summary.manifest
    lines = [f"from {origin['name']} ({origin['release']}), {origin['licence']}, {origin['credit']}"] if origin else []
    lines.append(
        f"{summary.num_shards} shards, {summary.num_bytes / 1e6:,.1f} MB, format {summary.format_version}, "
        f"sha256 {summary.digest[:12]}…"
    )
    for name, counts in (("dropped", summary.dropped), ("noted", summary.noted), ("replaced", summary.substitutions)):
        lines += [f"{name}: {listed(counts)}"] if counts else []
    lines += ["", *_table({name: _columns(split) for name, split in summary.splits.items()})]
    lines += _leaks(summary.leaks)
    lines += ["", *_composition(summary.splits)]
    return dataclasses.asdict(summary), lines


def _fasta(path: Path) -> Description:
    from proteinlm.corpus import summarise_fasta
    from proteinlm.sequence.wording import listed

    summary = summarise_fasta([path], progress=TerminalProgress())
    lines = []
    counts = {
        "would be dropped": summary.screening.dropped,
        "noted": summary.screening.noted,
        "met": summary.reading,
        "replaced residues": summary.substitutions,
    }
    lines += [f"{name}: {listed(found)}" for name, found in counts.items() if found]
    lines += ["", *_table({"kept": _columns(summary.sequences)}), "", *_composition({"kept": summary.sequences})]
    return dataclasses.asdict(summary), lines


def _manifest(path: Path) -> Description:
    from proteinlm import config
    from proteinlm.corpus import read_manifest

    manifest = read_manifest(path)
    lines = [
        f"{manifest.name}: {manifest.description}",
        f"{manifest.release}, {manifest.licence}, {manifest.credit}",
        *(f"{file.path}: {_amounts(file)}" for file in manifest.files),
        f"ingest it with: proteinlm ingest --manifest {path} -o corpus/"
        if all((path.parent / file.path).exists() for file in manifest.files)
        else f"fetch it with: proteinlm download {path} -o {manifest.name}/",
    ]
    return config.to_table(manifest), lines


def _amounts(file: ManifestFile) -> str:
    """Return how much a file holds, or once held."""
    rough = file.approximate
    amounts = {
        name: getattr(file if getattr(file, name) is not None or rough is None else rough, name)
        for name in ("records", "residues", "bytes")
    }
    said = ", ".join(f"{amount:,} {name}" for name, amount in amounts.items() if amount is not None)
    return f"{said} (approximate, as of {rough.as_of})" if rough is not None and file.records is None else said


def _recipe(path: Path) -> Description:
    from proteinlm import config
    from proteinlm.recipe import load_recipe

    table = config.to_table(load_recipe(path))
    num_parameters = _num_parameters(table)
    return {"num_parameters": num_parameters, "recipe": table}, [f"{num_parameters:,} parameters", *_settings(table)]


def _num_parameters(recipe: Mapping[str, Any]) -> int:
    import torch

    from proteinlm import config
    from proteinlm.model import MaskedLM, ModelConfig

    settings = config.parse(ModelConfig, recipe["model"], source="model")
    # on the meta device a model of any size takes no memory
    with torch.device("meta"):
        model = MaskedLM(settings, seed=recipe["seed"], draw_weights=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _checkpoint(path: Path) -> Description:
    from proteinlm.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    num_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    table = {
        "step": checkpoint.step,
        "num_parameters": num_parameters,
        "metadata": checkpoint.metadata,
        "recipe": checkpoint.recipe,
    }
    lines = [f"{num_parameters:,} parameters after {checkpoint.step:,} steps"]
    return table, lines + _settings(checkpoint.metadata) + _settings(checkpoint.recipe)


def _run(path: Path) -> Description:
    from proteinlm.model.checkpoint import CHECKPOINT_FOLDER
    from proteinlm.training.journal import METRICS_FILE, read_metrics

    newest: dict[str, dict[str, Any]] = {}
    metrics = path / METRICS_FILE
    for entry in read_metrics(metrics) if metrics.exists() else []:
        newest[" ".join(str(entry[key]) for key in ("kind", "split") if key in entry)] = entry
    lines = [f"{name}: {_figures(entry)}" for name, entry in newest.items()]
    is_saved = (path / CHECKPOINT_FOLDER).is_dir()
    table, more = _checkpoint(path) if is_saved else ({}, ["no checkpoint yet"])
    return {"metrics": newest, **table}, lines + more


def _figures(entry: Mapping[str, Any]) -> str:
    parts = [(key, value) for key, value in entry.items() if key not in {"kind", "split"}]
    return ", ".join(f"{key} {value:,.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in parts)


def _settings(table: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line ``name = value`` for every setting."""
    lines: list[str] = []
    for name, value in table.items():
        nested = isinstance(value, Mapping)
        lines += _settings(value, f"{prefix}{name}.") if nested else [f"{prefix}{name} = {json.dumps(value)}"]
    return lines


def _columns(summary: SequenceSummary) -> dict[str, str]:
    return {
        "sequences": f"{summary.num_sequences:,}",
        "residues": f"{summary.num_residues:,}",
        "shortest": f"{summary.shortest:,}",
        **{f"{name} %": f"{value:,.0f}" for name, value in summary.percentiles.items()},
        "longest": f"{summary.longest:,}",
        "longer than 1,022": f"{summary.num_truncated:,}",
        "residues beyond": f"{summary.beyond_truncation:.1%}",
        "ambiguous": f"{summary.ambiguous:.3%}",
    }


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
