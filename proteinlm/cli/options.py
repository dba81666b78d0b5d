"""Options that several verbs have, and kinds of options that click does not have.

Some take several values one after the other, as users of esm-extract type them.

``--include mean per_tok sequences.fasta``: an option takes the words that follow it for as long as
they are values it knows, so that a file name after them stays an argument. A file that is named
like a value is reached as ``./mean`` or after ``--``. Commas part values as blanks do.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _Parameter = click.ParamType[int]
else:  # older versions of click know no type of the value
    _Parameter = click.ParamType

# one grammar for every verb: names as in a recipe, and a new kind leaves behind what only the old one had
set_option = functools.partial(click.option, "--set", "assignments", multiple=True, metavar="NAME=VALUE")
set_attention_option = set_option(help="Change a setting of the attention, such as kind=softmax.")

_BYTE_UNITS = {"": 1, "B": 1} | {
    name: base**power
    for power, letter in enumerate("KMGT", 1)
    for name, base in ((f"{letter}IB", 1024), (f"{letter}B", 1000), (letter, 1024))
}


class ByteSize(_Parameter):
    """A number of bytes, such as 512MiB, 4G or 2.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", str(value).upper())
        unit = _BYTE_UNITS.get(found[2]) if found else None
        if found is None or unit is None or not 1 <= (amount := float(found[1]) * unit) < math.inf:
            self.fail(f"'{value}' is no amount of memory; expected a number and a unit, such as 4GiB", param, ctx)
        return int(amount)


def _set_threads(_: click.Context, __: click.Parameter, number: int | None) -> None:
    """Say how many threads compute, and that those with nothing to do sleep.

    OpenMP reads the environment once, when torch is imported.
    """
    # by itself a thread spins for milliseconds at every barrier, also where the one that it waits for has no processor
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if number is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    callback=_set_threads,
    expose_value=False,
    show_default="OMP_NUM_THREADS, or all processors of this process",
    help="Processors to compute on.",
)


class SpaceSeparatedOption(click.Option):
    """An option of several values, typed with spaces or commas between them or by repeating the option."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **{"multiple": True, **attributes})

    def knows(self, word: str, ctx: click.Context) -> bool:
        """Return whether ``word`` is a value of this option, or several with commas between them."""
        parts = _parts(word)
        try:
            for part in parts:
                self.type.convert(part, self, ctx)
        except click.BadParameter:
            return False
        return bool(parts)

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return each value once, in the order typed."""
        # a default is made of values, and what is typed of words
        typed = value if value is None else [part for word in value for part in (_parts(word) or [word])]
        return tuple(dict.fromkeys(super().type_cast_value(ctx, typed)))


def _parts(word: Any) -> list[Any]:
    return [part for part in word.split(",") if part] if isinstance(word, str) else [word]


class SpaceSeparatedCommand(click.Command):
    """A command whose ``SpaceSeparatedOption`` parameters accept their values with spaces between them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse ``args`` with every value behind a repetition of its option."""
        return super().parse_args(ctx, list(self._repeated(ctx, args)))

    def _repeated(self, ctx: click.Context, words: list[str]) -> Iterator[str]:
        options = {
            name: parameter
            for parameter in self.params
            if isinstance(parameter, SpaceSeparatedOption)
            for name in parameter.opts
        }
        # click normalises names without their dashes
        normalise = ctx.token_normalize_func or str
        current: tuple[str, SpaceSeparatedOption] | None = None
        is_first_value = False
        for place, word in enumerate(words):
            if word == "--":
                yield from words[place:]
                return
            name, equals, _ = word.partition("=")
            option = options.get(f"--{normalise(name[2:])}") if name.startswith("--") else None
            if option is not None:
                current, is_first_value = (name, option), not equals
            elif current is not None and current[1].knows(word, ctx):
                if not is_first_value:
                    yield current[0]
                is_first_value = False
            else:
                current = None
            yield word
