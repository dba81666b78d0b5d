"""The page of all settings of a recipe says all of them, as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from proteinlm import config
from proteinlm.attention import MECHANISMS
from proteinlm.recipe import Recipe
from proteinlm.recipe_keys import keys_of, page, sections

SECTIONS = list(sections())


def test_committed_page_is_current(project_root: Path):
    committed = (project_root / "docs" / "recipe_keys.md").read_text(encoding="utf-8")
    assert committed == page(), "write it by: python -m proteinlm.recipe_keys > docs/recipe_keys.md"


@pytest.mark.parametrize(("heading", "settings"), SECTIONS, ids=[heading for heading, _ in SECTIONS])
def test_every_setting_has_a_default_a_meaning_and_a_when(heading, settings):
    tables = {name for name, value in config.to_table(settings()).items() if isinstance(value, dict)}
    keys = keys_of(settings)
    assert {key.name for key in keys} | tables == set(config.to_table(settings()))
    assert [key.name for key in keys if not (key.values and key.default and key.meaning and key.when)] == []


def test_every_table_and_every_kind_of_attention_has_a_section():
    headings = [heading for heading, _ in SECTIONS]
    tables = {name for name, value in config.to_table(Recipe()).items() if isinstance(value, dict)}
    assert {f"[{name}]" for name in tables} <= set(headings)
    assert [heading for heading in headings if "attention" in heading] == [
        f'[model.attention], kind = "{kind}"' for kind in MECHANISMS
    ]


def test_defaults_on_the_page_are_those_of_the_program():
    for _, settings in SECTIONS:
        typed = "\n".join(f"{key.name} = {key.default}" for key in keys_of(settings) if key.default != "not set")
        assert config.parse(settings, config.override({}, typed.splitlines()), source="page") == settings()
