"""Tables of settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from proteinlm import config
from proteinlm.attention import AttentionConfig, FavorConfig
from proteinlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    num_layers: int = 3
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.98)
    attention: AttentionConfig = field(default_factory=FavorConfig)

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers}; expected 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    seed: int
    model: Inner = field(default_factory=Inner)


def _message(table):
    with pytest.raises(ConfigError) as caught:
        config.parse(Outer, table, source="run.toml")
    return str(caught.value)


def test_table_becomes_its_dataclass():
    table = {"seed": 1, "model": {"rate": 1, "betas": [0.1, 0.2], "attention": {"kind": "softmax"}}}
    parsed = config.parse(Outer, table, source="run.toml")
    assert parsed.model.betas == (0.1, 0.2)
    assert parsed.model.attention.kind == "softmax"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    books: tuple[Inner, ...] = ()
    rooms: Mapping[str, Inner] = field(default_factory=dict)


def test_misspelt_names_in_lists_and_mappings_get_a_suggestion():
    table = {"books": [{}, {"num_layer": 1}], "rooms": {"attic": {"rat": 1.0}}}
    with pytest.raises(ConfigError) as caught:
        config.parse(Shelf, table, source="x")
    assert "books.1.num_layer: no such setting; did you mean 'num_layers'?" in str(caught.value)
    assert "rooms.attic.rat: no such setting; did you mean 'rate'?" in str(caught.value)


def test_dataclass_survives_the_way_through_a_table():
    parsed = Outer(seed=4, model=Inner(attention=FavorConfig(num_random_features=8, redraw_interval=0)))
    assert config.parse(Outer, config.to_table(parsed), source="x") == parsed


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"seed": 1, "model": {"num_layer": 4}}, "model.num_layer: no such setting; did you mean 'num_layers'?"),
        ({"seed": 1, "model": {"qqq": 4}}, "model.qqq: no such setting; expected one of attention, betas"),
        ({}, "seed: is required and not set"),
        ({"seed": "3"}, "seed: input should be a valid integer, found '3'"),
        ({"seed": 3.7}, "seed: input should be a valid integer, found 3.7"),
        ({"seed": True}, "seed: input should be a valid integer, found True"),
        ({"seed": 1, "model": {"num_layers": 0}}, "model: num_layers is 0; expected 1 or more"),
        ({"seed": 1, "model": {"attention": {"kind": "favour"}}}, "model.attention.kind: is 'favour'; expected one of"),
        (
            {"seed": 1, "model": {"attention": {"kind": "favor", "redraw_intervall": 3}}},
            "model.attention.redraw_intervall: no such setting; did you mean 'redraw_interval'?",
        ),
        ({"seed": 1, "model": {"betas": [1]}}, "model.betas.1: is required and not set"),
    ],
)
def test_fault_is_named_with_its_place_and_the_way_out(table, message):
    assert _message(table).startswith(f"run.toml: {message}")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_number_that_is_not_finite_is_refused(value):
    table = config.override({"seed": 1}, [f"model.rate={value}", f"model.betas=[0.5, {value}]"])
    assert _message(table).splitlines()[0].startswith(f"run.toml: model.rate: is {value}; expected a finite number")
    assert "model.betas" in _message(table)


def test_value_that_is_no_setting_of_any_kind_is_refused():
    assert "a setting is no number" in _message(config.override({}, ["seed=2020-01-01"]))


def test_all_faults_are_listed():
    assert len(_message({"model": {"num_layer": 3, "rate": "high"}}).splitlines()) == 3


def test_override_reads_values_as_toml_and_bare_words_as_text():
    table = config.override({"model": {"rate": 1}}, ["model.rate=0.5", "model.attention.kind=softmax", "list=[1, 2]"])
    assert table == {"model": {"rate": 0.5, "attention": {"kind": "softmax"}}, "list": [1, 2]}


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        (["model.attention.kind=softmax"], {"kind": "softmax"}),
        (["model.attention.kind=scatterbrain"], {"kind": "scatterbrain", "num_random_features": 8}),
        (
            ["model.attention.window=3", "model.attention.kind=window"],
            {"kind": "window", "window": 3},
        ),
        (["model.attention.kind=favor"], {"kind": "favor", "num_random_features": 8, "centring": True}),
        (['model.attention={kind = "linear"}'], {"kind": "linear"}),
        # what no kind has, and what is typed beside the kind, is kept: parse names it
        (["model.attention.kind=softmx"], {"kind": "softmx", "num_random_features": 8, "centring": True}),
        (
            ["model.attention.kind=linear", "model.attention.centring=false", "model.attention.decai=x"],
            {"kind": "linear", "centring": False, "decai": "x"},
        ),
    ],
)
def test_another_kind_leaves_behind_what_only_the_old_one_had(assignments, expected):
    table = {"seed": 1, "model": {"attention": {"kind": "favor", "num_random_features": 8, "centring": True}}}
    before = copy.deepcopy(table)
    assert config.assign(Outer, table, assignments)["model"]["attention"] == expected
    assert table == before


def test_misspelt_setting_of_the_old_kind_is_still_refused():
    table = {"seed": 1, "model": {"attention": {"kind": "favor", "num_random_feature": 8}}}
    assigned = config.assign(Outer, table, ["model.attention.kind=softmax"])
    assert _message(assigned).startswith("run.toml: model.attention.num_random_feature: no such setting")


def test_setting_that_the_new_kind_lacks_is_refused_by_name():
    table = {"seed": 1, "model": {"attention": {"kind": "favor"}}}
    assigned = config.assign(Outer, table, ["model.attention.kind=softmax", "model.attention.num_random_features=3"])
    assert _message(assigned).startswith("run.toml: model.attention.num_random_features: no such setting; expected one")


def test_override_leaves_the_table_it_was_given():
    table = {"model": {"rate": 1}}
    config.override(table, ["model.rate=2"])
    assert table == {"model": {"rate": 1}}


@pytest.mark.parametrize("assignment", ["model.rate", "=3", "seed.x=3"])
def test_faulty_assignment_is_refused(assignment):
    with pytest.raises(ConfigError, match=r"expected NAME=VALUE|holds no settings"):
        config.override({"seed": 1}, [assignment])


def test_toml_error_names_file_and_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("seed = 1\nmodel = = 3\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not valid TOML: .*line 2"):
        config.read_table(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
        config.read_table(tmp_path / "none.toml")
