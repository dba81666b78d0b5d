"""A table of settings in, a frozen dataclass out, and nothing guessed on the way.

Every component's settings are a frozen dataclass beside the component, the only home of their
defaults. Here a TOML table becomes such a dataclass: unknown names, wrong types and values out of
range are refused, all of them at once, each by its dotted name.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from proteinlm.errors import ConfigError

Config = TypeVar("Config")
Table = dict[str, Any]


def read_table(path: Path) -> Table:
    """Read a TOML file.

    Raises:
        ConfigError: if the file is missing, is no UTF-8 text, or is no TOML; names file and line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def override(table: Mapping[str, Any], assignments: Iterable[str]) -> Table:
    """Return ``table`` with assignments such as ``model.num_layers=4`` applied.

    The right side is read as a TOML value; what is none (a bare word) is taken as a string.

    Raises:
        ConfigError: if an assignment has no ``=`` or goes through something that is no table.
    """
    result: Table = copy.deepcopy(dict(table))
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"'{assignment}' is no assignment; expected NAME=VALUE, such as model.num_layers=4")
        *path, last = name.strip().split(".")
        inner = result
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{name.strip()}: '{step}' is a value and holds no settings")
        inner[last] = _toml_value(text.strip())
    return result


def assign(kind: type, table: Mapping[str, Any], assignments: Iterable[str]) -> Table:
    """Return ``table``, one of the dataclass ``kind``, with assignments as a person means them.

    As ``override``; and where the ``kind`` of a table becomes another one, what only the old kind could be set
    to goes with it. What both have stays, and so does whatever is assigned, for ``parse`` to judge.

    Raises:
        ConfigError: as ``override``.
    """
    assignments = list(assignments)
    result = override(table, assignments)
    _leave_old_kinds(kind, table, result, {assignment.partition("=")[0].strip() for assignment in assignments})
    return result


def _leave_old_kinds(kind: Any, old: Mapping[str, Any], new: Table, assigned: set[str], prefix: str = "") -> None:
    """Take settings of an old kind out of ``new``, wherever a table became one of another kind."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        before, after = old.get(name), new.get(name)
        members = [member for member in _members(hint) if dataclasses.is_dataclass(member)]
        if not members or _is_collection(hint) or not isinstance(before, Mapping) or not isinstance(after, dict):
            continue
        if len(members) == 1:
            _leave_old_kinds(members[0], before, after, assigned, f"{prefix}{name}.")
            continue
        was, now = (
            _names(member for member in members if table.get("kind") in _tags(member)) for table in (before, after)
        )
        for left in was - now if now else ():
            if f"{prefix}{name}.{left}" not in assigned:
                after.pop(left, None)


def _names(kinds: Iterable[Any]) -> set[str]:
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse(kind: type[Config], table: Mapping[str, Any], *, source: str) -> Config:
    """Return ``table`` as an instance of the dataclass ``kind``.

    Types are strict: "3" is no number and 3.7 no count.

    Args:
        source: where the table came from, said in front of every message.

    Raises:
        ConfigError: lists every fault on a line of its own.
    """
    import pydantic

    if unbounded := list(_unbounded(table)):
        raise ConfigError(
            "\n".join(f"{source}: {name}: is {value}; expected a finite number" for name, value in unbounded)
        )
    try:
        # strict JSON mode turns lists into tuples and tables into dataclasses, and nothing else
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(table), strict=True, extra="forbid")
    except pydantic.ValidationError as error:
        faults = [_fault(kind, dict(item)) for item in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults)) from error
    except TypeError as error:
        raise ConfigError(f"{source}: a setting is no number, text, truth value, list or table ({error})") from error


def _unbounded(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _unbounded(value, f"{prefix}{name}.")
        values = value if isinstance(value, list | tuple) else [value]
        yield from ((prefix + name, one) for one in values if isinstance(one, float) and not math.isfinite(one))


def to_table(config: Any) -> Table:
    """Return a dataclass as a plain table that ``json`` can write and ``parse`` can read."""
    table: Table = json.loads(json.dumps(dataclasses.asdict(config)))
    return table


def _fault(kind: type, item: dict[str, Any]) -> str:
    location = [str(part) for part in item["loc"]]
    known, shown = _walk(kind, location)
    name = ".".join(shown)
    match item["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"expected one of {', '.join(sorted(known))}"
            return f"{name}: no such setting; {hint}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{name}: is required and not set"
        case "union_tag_not_found":
            return f"{name}: 'kind' is required and not set"
        case "union_tag_invalid":
            context = item["ctx"]
            return f"{name}.kind: is '{context['tag']}'; expected one of {context['expected_tags']}"
    message = str(item["msg"]).removeprefix("Value error, ")
    place = f"{name}: " if name else ""
    return f"{place}{message[0].lower()}{message[1:]}" + _found(item)


def _found(item: dict[str, Any]) -> str:
    value = item.get("input")
    return "" if item["type"] == "value_error" or isinstance(value, dict) else f", found {value!r}"


def _walk(kind: Any, location: list[str]) -> tuple[list[str], list[str]]:
    """Return the names known where ``location`` ends, and the location without union tags."""
    shown: list[str] = []
    known: list[str] = []
    current: Any = kind
    for step in location:
        if _is_collection(current):
            # a place in a list or a name in a mapping: what is there is of the type of its items
            current = [kind for kind in typing.get_args(current) if kind is not ...][-1]
            shown.append(step)
            continue
        members = [m for m in _members(current) if dataclasses.is_dataclass(m)]
        tagged = [m for m in members if step in _tags(m)] if len(members) > 1 else []
        if tagged:
            current = tagged[0]
            continue
        hints = {k: v for m in members for k, v in typing.get_type_hints(m, include_extras=True).items()}
        known = list(hints)
        shown.append(step)
        current = hints.get(step)
    return known, shown


def _is_collection(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Collection)


def _members(kind: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotated or union type."""
    if typing.get_origin(kind) is typing.Annotated:
        yield from _members(typing.get_args(kind)[0])
    elif typing.get_args(kind) and not dataclasses.is_dataclass(kind):
        for member in typing.get_args(kind):
            yield from _members(member)
    else:
        yield kind


def _tags(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(typing.get_type_hints(kind).get("kind"))
