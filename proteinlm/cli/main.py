"""The command ``proteinlm``: verbs are imported only when they are called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import click

import proteinlm
from proteinlm.errors import ProteinLMError

# verb -> the line that `proteinlm --help` shows; the module of the same name holds `command`
VERBS = {
    "download": "Fetch a corpus release from its publisher.",
    "ingest": "Read FASTA files into a corpus of shards.",
    "inspect": "Say what a corpus, a checkpoint or a recipe is.",
    "verify": "Check every digest of a corpus and name the first bytes that are damaged.",
    "export": "Write the sequences of a corpus as FASTA.",
    "train": "Train a masked language model from a recipe.",
    "evaluate": "Measure a checkpoint on the validation splits of a corpus.",
    "embed": "Write embeddings of the sequences in a FASTA file.",
    "compare": "Measure how far approximate attention is from exact softmax.",
}


# how long a process that is not the first waits with its error: launchers end all when one has failed
PATIENCE_SECONDS = 5.0


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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; what makes every process of a launcher fail alike is said by the first of them alone."""
        try:
            return super().invoke(ctx)
        except (ProteinLMError, click.UsageError):
            if os.environ.get("RANK", "0") != "0":
                # still here after this, it has failed alone, or nobody ends it: then it speaks for itself
                time.sleep(PATIENCE_SECONDS)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _both_spellings(name: str) -> str:
    # users of other tools type --repr_layers where we say --repr-layers; names come here without their dashes
    return name.replace("_", "-")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that what is half-written is removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        # only the main thread hears of signals
        yield
        return

    def end(number: int, _: Any) -> NoReturn:
        # a second one must not break off the tidying
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    # what this process was told to ignore, as nohup does, stays ignored
    heard = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _both_spellings},
    epilog="Example: proteinlm embed sequences.fasta --checkpoint runs/first -o embeddings.h5",
)
@click.version_option(proteinlm.__version__, prog_name="proteinlm")
# DeepSpeed's launcher types it before the verb, and sets the variable of that name as torchrun does
@click.option("--local-rank", type=click.IntRange(min=0), hidden=True)
@click.pass_context
def group(ctx: click.Context, local_rank: int | None) -> None:
    """Language models of protein sequences at full length."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    # train saves its state on these by itself
    if ctx.invoked_subcommand != "train":
        ctx.with_resource(_ended_by_signals())


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line.

    Exits 0 when done, 1 on an error with its reason, 2 on wrong usage, 143 on SIGTERM, 129 on SIGHUP.
    """
    _open_closed_streams()
    try:
        group.main(arguments, prog_name="proteinlm", standalone_mode=True)
    except ProteinLMError as error:
        _end(str(error))
    except BrokenPipeError:
        # the reader of our output has gone, as in `proteinlm inspect … | head`
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _end(_said(error))


def _end(reason: str) -> NoReturn:
    # nobody may be there to read it, as when a terminal was closed
    with suppress(OSError):
        for line in reason.splitlines():
            print(f"proteinlm: {line}", file=sys.stderr)
    sys.exit(1)


def _said(error: OSError) -> str:
    """Return the file and the reason of an error of the system that nobody has answered."""
    name = error.filename
    if name is None and traceback.extract_tb(error.__traceback__)[-1].name == click.echo.__name__:
        # what is left in it would be written again, and refused again, at the end of the process
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (stays open)
        name = "standard output"
    reason = error.strerror or str(error)
    return reason if name is None else f"{name}: {reason}"


def _open_closed_streams() -> None:
    """Keep files that are opened from taking the place of a standard stream that was closed.

    Whoever needs the one that was closed says so, but errors can be said nowhere: their stream is an empty one.
    """
    for name, mode in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # the lowest number that is free, which is the stream's
            os.open(os.devnull, mode)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (stays open)
