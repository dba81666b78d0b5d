"""Options of several values read as people type them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from proteinlm.cli.options import ByteSize, SpaceSeparatedCommand, SpaceSeparatedOption


@click.command(
    cls=SpaceSeparatedCommand,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
@click.argument("files", nargs=-1)
@click.option("--include", cls=SpaceSeparatedOption, type=click.Choice(["mean", "per_tok"]), default=["mean"])
@click.option("--repr-layers", cls=SpaceSeparatedOption, type=int, default=[-1])
@click.option("-o", "--output")
def command(**values: object) -> None:
    click.echo(values)


def read(*words: str) -> dict[str, object]:
    result = CliRunner().invoke(command, list(words), standalone_mode=False, catch_exceptions=False)
    return dict(eval(result.output))


@pytest.mark.parametrize(
    "words",
    [
        ["--include", "mean", "per_tok", "a.fasta", "b.fasta"],
        ["a.fasta", "--include", "mean", "per_tok", "-o", "x", "b.fasta"],
        ["a.fasta", "b.fasta", "--include", "mean", "per_tok"],
        ["--include", "mean", "--include", "per_tok", "a.fasta", "b.fasta"],
        ["--include=mean", "per_tok", "a.fasta", "b.fasta"],
        ["--include", "mean", "per_tok", "mean", "--", "a.fasta", "b.fasta"],
        ["--include", "mean,per_tok", "a.fasta", "b.fasta"],
        ["--include=mean,per_tok", "a.fasta", "b.fasta"],
        ["--include", "mean,", "per_tok", "a.fasta", "b.fasta"],
    ],
    ids=["first", "middle", "last", "repeated", "equals", "dashes", "commas", "equals commas", "comma blank"],
)
def test_values_and_files_are_told_apart_in_any_position(words: list[str]):
    values = read(*words)
    assert (values["include"], values["files"]) == (("mean", "per_tok"), ("a.fasta", "b.fasta"))


def test_negative_numbers_are_values():
    values = read("--repr-layers", "-1", "0", "3", "a.fasta", "-o", "x")
    assert (values["repr_layers"], values["files"], values["output"]) == ((-1, 0, 3), ("a.fasta",), "x")


def test_commas_part_numbers():
    values = read("--repr-layers", "-1,0,3", "a.fasta")
    assert (values["repr_layers"], values["files"]) == ((-1, 0, 3), ("a.fasta",))


def test_an_unknown_value_behind_a_comma_is_wrong_usage_that_names_it():
    with pytest.raises(click.BadParameter, match="'median' is not one of 'mean'"):
        read("--include", "mean,median")


@pytest.mark.parametrize("word", ["", ","])
def test_nothing_is_no_value(word: str):
    with pytest.raises(click.BadParameter, match="is not one of 'mean'"):
        read("--include", word)


def test_underscores_in_the_name_of_the_option_do_not_matter():
    assert read("--repr_layers", "0", "3", "a.fasta")["repr_layers"] == (0, 3)


def test_default_stands_where_the_option_is_not_typed():
    assert read("a.fasta")["include"] == ("mean",)


def test_file_named_like_a_value_is_reached_after_dashes():
    values = read("--include", "per_tok", "--", "mean")
    assert (values["include"], values["files"]) == (("per_tok",), ("mean",))


def test_unknown_value_is_wrong_usage():
    with pytest.raises(click.BadParameter, match=r"'a\.fasta' is not one of 'mean'"):
        read("--include", "a.fasta")


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("1.5 KiB", 1536), ("2gb", 2_000_000_000), ("3T", 3 << 40), ("4MiB", 4 << 20)]
)
def test_amounts_of_memory_have_units(text, expected):
    assert ByteSize().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "0", "0.5", "-1", "4XB", "1e3", "nan", "9" * 400])
def test_what_is_no_amount_of_memory_is_wrong_usage(text):
    with pytest.raises(click.BadParameter, match="is no amount of memory"):
        ByteSize().convert(text, None, None)


def test_missing_value_is_wrong_usage():
    with pytest.raises(click.UsageError, match="requires an argument"):
        read("a.fasta", "--include")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("1KiB", 1024),
        ("1k", 1024),
        ("2 MB", 2_000_000),
        ("1.5GiB", 3 << 29),
        ("1tib", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes_have_the_units_that_people_write(text, size):
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "1XiB", "0", "0.1", "GiB"])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(click.BadParameter, match="such as 4GiB"):
        ByteSize().convert(text, None, None)
