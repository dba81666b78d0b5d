"""``proteinlm inspect``: what a corpus, checkpoint, run, recipe, manifest or FASTA file is."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.corpus_description import CorpusOptions, Description, describe_corpus, describe_file
from proteinlm.cli.options import set_option
from proteinlm.cli.terminal import TerminalProgress, note

if TYPE_CHECKING:
    from proteinlm.corpus.manifest import ManifestFile

EXAMPLE = """\b
Example:
  proteinlm inspect corpus/ --picture lengths.png
"""

DEFAULT_WINDOW_LENGTH = 8192


@click.command(epilog=EXAMPLE)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every shard of a corpus again, as proteinlm verify does.")
@click.option(
    "--window-length",
    type=click.IntRange(min=8, max=(1 << 31) - 1),
    help=f"Say how full windows of this length get.  [positions; {DEFAULT_WINDOW_LENGTH} if not given]",
)
@click.option("--duplicates", is_flag=True, help="Read a corpus and count its exactly equal sequences.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the lengths to this PNG file.")
@set_option(help="Change a setting of a recipe, such as model.num_layers=4.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: Path,
    verify: bool,
    window_length: int | None,
    duplicates: bool,
    picture: Path | None,
    assignments: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what PATH is and what it holds.

    PATH is a corpus, a checkpoint, the folder of a run, a recipe, manifest or list of families (.toml, or
    the name of one that comes with the program), or a file of sequences. --window-length and --duplicates
    are for a corpus, --picture is for a corpus or a file of sequences, --set is for a recipe.
    """
    options = CorpusOptions(window_length or DEFAULT_WINDOW_LENGTH, duplicates, picture)
    kind, (table, lines) = _described(path, options, assignments)
    for name, value in (("verify", verify), ("window-length", window_length), ("duplicates", duplicates)):
        if value and kind != "corpus":
            raise click.UsageError(f"--{name} is for a corpus, and {path} is a {kind}")
    if assignments and kind != "recipe":
        raise click.UsageError(f"--set is for a recipe, and {path} is a {kind}")
    if picture and kind not in {"corpus", "FASTA"}:
        raise click.UsageError(f"--picture is for a corpus or a file of sequences, and {path} is a {kind}")
    if verify:
        _verify(path)
    if as_json:
        click.echo(json.dumps({"kind": kind, "path": str(path), **table}, indent=2))
    else:
        click.echo("\n".join([f"{path}: {kind}", *(f"  {line}" if line else "" for line in lines)]))


def _verify(path: Path) -> None:
    from proteinlm.corpus import open_corpus, verify_corpus

    verify_corpus(open_corpus(path), progress=TerminalProgress())
    note(f"every shard has the digest that {path} says")


def _described(path: Path, options: CorpusOptions, assignments: Sequence[str]) -> tuple[str, Description]:
    """Return the kind and description of a path; what the system refuses is an error that names the file."""
    from proteinlm.errors import ConfigError

    try:
        return _describe(path, options, assignments)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{error.filename or path}: no such file or folder") from error
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _describe(path: Path, options: CorpusOptions, assignments: Sequence[str]) -> tuple[str, Description]:
    from proteinlm.shipped import find_anything

    if _is_folder(path):
        return _describe_folder(path, options)
    path = path if str(path) == "-" else find_anything(path)
    if path.suffix == ".toml":
        from proteinlm import config
        from proteinlm.corpus import is_manifest

        table = config.read_table(path)
        if "families" in table:
            return "list of families", _families(path)
        return ("manifest", _manifest(path)) if is_manifest(table) else ("recipe", _recipe(path, assignments))
    return "FASTA", describe_file(path, options)


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; a Path's own answer is no where it may not look."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _describe_folder(path: Path, options: CorpusOptions) -> tuple[str, Description]:
    from proteinlm.corpus.layout import INDEX_FILE
    from proteinlm.errors import ConfigError

    # a corpus is told without loading torch
    if _holds(path, INDEX_FILE):
        return "corpus", describe_corpus(path, options)
    from proteinlm.model.checkpoint import CHECKPOINT_FOLDER, WEIGHTS_FILE
    from proteinlm.recipe import RUN_FILE
    from proteinlm.training.journal import METRICS_FILE

    if _holds(path, METRICS_FILE) or _holds(path, RUN_FILE):
        return "run", _run(path)
    if _holds(path, WEIGHTS_FILE) or _holds(path, CHECKPOINT_FOLDER):
        return "checkpoint", _checkpoint(path)
    raise ConfigError(f"{path}: is no corpus ({INDEX_FILE}), checkpoint ({WEIGHTS_FILE}) or run ({METRICS_FILE})")


def _holds(folder: Path, name: str) -> bool:
    """Return whether a folder has an entry of a name."""
    try:
        (folder / name).stat()
    except FileNotFoundError:
        return False
    return True


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


def _families(path: Path) -> Description:
    from proteinlm import config
    from proteinlm.corpus.held_out import read_family_list

    found = read_family_list(path)
    lines = [
        f"{found.name}: {found.description}",
        f"{len(found.families):,} families of {found.database}, chosen by {found.source}",
        *(f"{family.accession} {family.name}".rstrip() for family in found.families),
        f"hold them out with: proteinlm ingest FILES -o corpus/ --held-out-families {path} --families TABLE",
    ]
    return config.to_table(found), lines


def _amounts(file: ManifestFile) -> str:
    """Return how much a file holds, or once held."""
    rough = file.approximate
    amounts = {
        name: getattr(file if getattr(file, name) is not None or rough is None else rough, name)
        for name in ("records", "residues", "bytes")
    }
    said = ", ".join(f"{amount:,} {name}" for name, amount in amounts.items() if amount is not None)
    return f"{said} (approximate, as of {rough.as_of})" if rough is not None and file.records is None else said


def _recipe(path: Path, assignments: Sequence[str]) -> Description:
    from proteinlm import config
    from proteinlm.recipe import load_recipe

    table = config.to_table(load_recipe(path, assignments))
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
    from proteinlm.model.checkpoint import listed_not_finite, load_checkpoint, not_finite

    checkpoint = load_checkpoint(path, refuse_not_finite=False)
    num_parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    found = not_finite(checkpoint.model.state_dict())
    table = {
        "step": checkpoint.step,
        "num_parameters": num_parameters,
        "not_finite": found,
        "metadata": checkpoint.metadata,
        "recipe": checkpoint.recipe,
    }
    lines = [f"{num_parameters:,} parameters after {checkpoint.step:,} steps"]
    lines += [f"no model to run: {listed_not_finite(found)}"] if found else []
    return table, lines + _settings(checkpoint.metadata) + _settings(checkpoint.recipe)


def _run(path: Path) -> Description:
    from proteinlm.model.checkpoint import CHECKPOINT_FOLDER
    from proteinlm.training.journal import METRICS_FILE, read_metrics

    newest: dict[str, dict[str, Any]] = {}
    for entry in read_metrics(path / METRICS_FILE) if _holds(path, METRICS_FILE) else []:
        newest[" ".join(str(entry[key]) for key in ("kind", "split") if key in entry)] = entry
    lines = [f"{name}: {_figures(entry)}" for name, entry in newest.items()]
    is_saved = _holds(path, CHECKPOINT_FOLDER)
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
