"""What docs/training.md estimates of memory and time follows from its own formulas and the measurements it names."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

from proteinlm.model import MaskedLM
from proteinlm.recipe import Recipe, load_recipe


@pytest.fixture
def page(project_root: Path) -> str:
    text = (project_root / "docs" / "training.md").read_text(encoding="utf-8")
    return " ".join(text[text.index("## How much memory") : text.index("## Stop and go on")].split())


@pytest.fixture
def recipe(project_root: Path) -> Recipe:
    return load_recipe(project_root / "pipelines" / "uniref50_favor.toml")


@pytest.fixture
def num_parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        model = MaskedLM(recipe.model, seed=0, draw_weights=False)
    return sum(weight.numel() for weight in model.parameters())


def test_parameters_are_about_twelve_times_layers_and_width_squared(recipe, num_parameters, page):
    assert num_parameters == pytest.approx(12 * recipe.model.num_layers * recipe.model.hidden_size**2, rel=0.01)
    assert f"P = {num_parameters / 1e6:.0f} million" in page


def test_memory_of_the_example_follows_from_the_tables(recipe, num_parameters, page):
    # bfloat16, stage 2 at its worst, 8 processes
    bytes_each = 4 + 16 / 8
    assert f"{bytes_each:.0f} bytes · P = {bytes_each * num_parameters / 1e9:.1f} GB" in page
    positions = recipe.training.windows_per_micro_batch * recipe.packing.window_length
    activations = 20 * recipe.model.num_layers * recipe.model.hidden_size * positions * 2
    assert f"20 · 24 · 1,024 · {positions:,} · 2 bytes = {activations / 1e9:.0f} GB" in page


def test_time_of_the_example_follows_from_the_tables(recipe, num_parameters, page):
    model = recipe.model
    features = model.attention.num_random_features
    operations = 6 * num_parameters + 24 * model.num_layers * model.hidden_size * features
    residues = recipe.schedule.num_steps * recipe.training.windows_per_step * recipe.packing.window_length
    fast, slow = (residues * operations / (8 * share * 312e12) / 3_600 for share in (0.25, 0.1))
    assert f"= {residues / 1e11:.1f} · 10¹¹ residues, {operations / 1e9:.1f} · 10⁹ operations each" in page
    assert f"take {fast:.0f} hours at 25 %, and {slow:.0f} at 10 %" in page


def test_activations_are_those_that_were_measured(project_root, page):
    with (project_root / "benchmarks" / "results" / "reformer.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["against"] == "depth"]
    peaks = {(row["kind"], row["trunk"], int(row["depth"])): int(row["peak_live_bytes"]) for row in rows}
    width, length = 256, 1_024

    def numbers(kind: str) -> float:
        return (peaks[kind, "ordinary", 32] - peaks[kind, "ordinary", 4]) / (32 - 4) / length / width / 4

    stated = re.search(r"FAVOR\+ ([\d.]+) N D, softmax ([\d.]+) N D, LSH with 4 rounds ([\d.]+) N D", page)
    found = [f"{numbers(kind):.1f}" for kind in ("favor", "softmax", "lsh")]
    assert list(stated.groups()) == found
    assert max(map(float, found)) == pytest.approx(20, abs=1)
    reversible = {peaks["favor", "reversible", depth] / length / width / 4 for depth in (4, 32)}
    assert {f"{value:.0f}" for value in reversible} == {"30"}
