"""``proteinlm train``: a recipe and a corpus in, a run folder out."""

from __future__ import annotations

import time
from pathlib import Path

import click

from proteinlm.cli.options import set_option, threads_option
from proteinlm.cli.terminal import TerminalProgress, note, seconds

EXAMPLE = """\b
Examples:
  proteinlm train quickstart --corpus corpus/ --output runs/first
  proteinlm train quickstart --corpus corpus/ --output runs/first --resume
  torchrun --nproc-per-node=2 -m proteinlm train RECIPE --corpus corpus/ --output runs/two
  deepspeed --num_gpus 2 --module proteinlm train RECIPE --corpus corpus/ --output runs/two
"""


@click.command(epilog=EXAMPLE)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="Corpus made by proteinlm ingest.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the newest training state in the folder.")
@threads_option
@set_option(help="Change a setting of the recipe, such as model.num_layers=4.")
def command(recipe: Path, corpus: Path, output: Path, resume: bool, assignments: tuple[str, ...]) -> None:
    """Train a masked language model from a RECIPE.

    RECIPE is a path, or the name of one that comes with the program, such as quickstart.

    Runs in one process, or unchanged in as many as torchrun or deepspeed start. Ctrl-C ends the
    step in hand, saves the state and exits; --resume goes on from there.
    """
    from proteinlm.shipped import find_recipe

    recipe = find_recipe(recipe)
    # torch is loaded only for a recipe that is there
    from proteinlm.recipe import load_recipe, train

    start = time.perf_counter()
    result = train(
        load_recipe(recipe, assignments),
        corpus,
        output,
        resume=resume,
        recipe_folder=recipe.parent,
        progress=TerminalProgress(),
    )
    if not result.is_first_process:
        raise SystemExit(int(result.was_interrupted))
    done = result.progress
    for score in result.validation:
        click.echo(score)
    note(f"trained {done.step:,} steps on {done.num_residues:,} residues in {seconds(start)}; run is in {output}")
    if result.was_interrupted:
        note(f"interrupted: the state is saved; go on with --resume and --output {output}")
        raise SystemExit(1)
