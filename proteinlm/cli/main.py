"""The command ``proteinlm``: verbs are imported only when they are called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

import proteinlm
from proteinlm.errors import ProteinLMError

# verb -> the line that `proteinlm --help` shows; the module of the same name holds `command`
VERBS = {
    "ingest": "Read FASTA files into a corpus of shards.",
    "inspect": "Say what a corpus, a checkpoint or a recipe is.",
    "train": "Train a masked language model from a recipe.",
    "evaluate": "Measure a checkpoint on the validation splits of a corpus.",
    "embed": "Write embeddings of the sequences in a FASTA file.",
    "compare": "Measure how far approximate attention is from exact softmax.",
}


class LazyGroup(click.Group):
    """A group that knows the names of its verbs and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order in which people meet them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a verb and return its command."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"proteinlm.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _both_spellings(name: str) -> str:
    # users of other tools type --repr_layers where we say --repr-layers; names come here without their dashes
    return name.replace("_", "-")


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _both_spellings},
    epilog="Example: proteinlm embed sequences.fasta --checkpoint runs/first -o embeddings.h5",
)
@click.version_option(proteinlm.__version__, prog_name="proteinlm")
def group() -> None:
    """Language models of protein sequences at full length."""


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line; exit 0 when done, 1 on an error with its reason, 2 on wrong usage."""
    try:
        group.main(arguments, prog_name="proteinlm", standalone_mode=True)
    except ProteinLMError as error:
        for line in str(error).splitlines():
            print(f"proteinlm: {line}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # the reader of our output has gone, as in `proteinlm inspect … | head`
        sys.stderr.close()
        sys.exit(1)
