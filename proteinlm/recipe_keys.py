"""The page of all settings of a recipe, made of the comments above the fields of the dataclasses.

``python -m proteinlm.recipe_keys > docs/recipe_keys.md`` writes it. A comment above a field says what it means,
and from a line that begins with ``when:`` on, when to change it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from proteinlm.attention import MECHANISMS
from proteinlm.recipe import Recipe

HEAD = """\
# Recipe keys

Every setting that a recipe can have, what it means, what it is where the recipe leaves it out, and when to change
it. [Recipes](recipes.md) says how to write one and how `--set` changes a key for one call. This page is made from
the source by `python -m proteinlm.recipe_keys`.
"""

COLUMNS = "| key | values | default | meaning | when to change it |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Key:
    """A setting: its name, the values it takes, its default as TOML has it, its meaning and when to change it."""

    name: str
    values: str
    default: str
    meaning: str
    when: str


def keys_of(config: type) -> list[Key]:
    """Return the settings of a dataclass, in the order of its fields, without those that are tables of their own."""
    lines = inspect.getsource(config).splitlines()
    (definition,) = ast.parse("\n".join(lines)).body
    hints = typing.get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}
    keys = []
    for node in typing.cast(ast.ClassDef, definition).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = fields[node.target.id]
            if field.default is not dataclasses.MISSING:
                meaning, when = _comment(lines, node.lineno)
                keys.append(Key(field.name, _values(hints[field.name]), _toml(field.default), meaning, when))
    return keys


def _comment(lines: list[str], number: int) -> tuple[str, str]:
    """Return what the comment above line ``number``, counted from 1, says before and after ``when:``."""
    first = number - 1
    while lines[first - 1].strip().startswith("#"):
        first -= 1
    text = " ".join(line.strip().lstrip("# ") for line in lines[first : number - 1])
    meaning, _, when = text.partition(" when: ")
    return meaning, when


def _values(hint: Any) -> str:
    """Return the values of a type in words, choices as TOML has them."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{_toml(choice)}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"[{', '.join(_values(item) for item in typing.get_args(hint))}]"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    return " or ".join(names[kind] for kind in typing.get_args(hint) or (hint,) if kind is not type(None))


def _toml(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def sections() -> Iterator[tuple[str, type]]:
    """Yield the heading and the dataclass of every table of a recipe, attention once for each kind."""
    yield "Top of the file", Recipe
    for field in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(config := typing.get_type_hints(Recipe)[field.name]):
            yield f"[{field.name}]", typing.cast(type, config)
            if field.name == "model":
                yield from ((f'[model.attention], kind = "{kind}"', config) for kind, (config, _) in MECHANISMS.items())


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for heading, config in sections():
        rows = "".join(
            f"| `{key.name}` | {key.values} | `{key.default}` | {_escaped(key.meaning)} | {_escaped(key.when)} |\n"
            for key in keys_of(config)
        )
        says = (inspect.getdoc(config) or "").splitlines()[0]
        parts.append(f"\n## {heading}\n\n{says}\n\n{COLUMNS}{rows}")
    return "".join(parts)


def _escaped(text: str) -> str:
    return re.sub(r"([|<*])", r"\\\1", text)


if __name__ == "__main__":
    print(page(), end="")
