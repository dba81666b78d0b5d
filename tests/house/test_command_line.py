"""Every verb says what it does, shows an example that works, and ends with one of three exit codes."""

from __future__ import annotations

import importlib
import shlex

import click
import pytest
from click.testing import CliRunner

from proteinlm.cli.main import VERBS, group, main


def help_of(verb: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(group, [verb, "--help"], terminal_width=200)
    assert result.exit_code == 0
    return result.output


def command_of(verb: str) -> click.Command:
    command: click.Command = importlib.import_module(f"proteinlm.cli.{verb}").command
    return command


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_the_same_verb_as_its_line_in_the_list(verb: str):
    description = (command_of(verb).help or "").split()
    assert description[0] == VERBS[verb].split()[0]


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example(verb: str):
    text = help_of(verb)
    assert "Example" in text
    assert f"proteinlm {verb} " in text.rstrip().splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_examples_use_options_that_exist(verb: str, options_of):
    examples = [line for line in help_of(verb).splitlines() if f"proteinlm {verb} " in line]
    for example in examples:
        typed = {word.partition("=")[0] for word in shlex.split(example.split(f"{verb} ", 1)[1]) if word[:1] == "-"}
        assert typed <= options_of(verb) | {"-"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str):
    options = [parameter for parameter in command_of(verb).params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code or 0)


def test_exit_code_is_0_when_done():
    assert exit_code("--version") == 0


def test_exit_code_is_1_on_an_error_with_a_reason(tmp_path, capsys):
    assert exit_code("inspect", f"{tmp_path}/nothing") == 1
    assert capsys.readouterr().err.startswith("proteinlm: ")


@pytest.mark.parametrize("words", [["embbed"], ["embed"], ["embed", "x.fasta", "--nonsense"]], ids=" ".join)
def test_exit_code_is_2_on_wrong_usage(words: list[str]):
    assert exit_code(*words) == 2


def test_options_may_be_typed_with_underscores(capsys):
    assert exit_code("embed", "x", "--checkpoint", "c", "-o", "o.h5", "--toks_per_batch", "0") == 2
    assert "not in the range" in capsys.readouterr().err
