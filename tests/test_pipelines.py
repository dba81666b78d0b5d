"""What pipelines/README.md says of the recipes beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from proteinlm.model import MaskedLM
from proteinlm.recipe import Recipe, load_recipe

PIPELINES = Path(__file__).parent.parent / "pipelines"
README = (PIPELINES / "README.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in README.splitlines() if re.match(r"\| \[?\w+\.toml", line)]
ESTIMATES = {row[0]: row[1:] for row in ROWS if row[0].endswith(".toml")}


@dataclass(frozen=True)
class Machine:
    """GPUs, and the dense bfloat16 rate of one of them in FLOP/s."""

    num_gpus: int
    rate: float


MACHINES = {
    "swissprot_one_gpu.toml": Machine(1, 125e12),
    "uniref50_one_gpu.toml": Machine(1, 125e12),
    "uniref50_four_gpus.toml": Machine(4, 312e12),
    "uniref50_favor.toml": Machine(8, 312e12),
}


def num_parameters(recipe: Recipe) -> int:
    with torch.device("meta"):
        model = MaskedLM(recipe.model, seed=0, draw_weights=False)
    return sum(weight.numel() for weight in model.parameters())


def estimates(recipe: Recipe, machine: Machine) -> list[str]:
    """Return a row of the table of estimates by the formulas that stand below it."""
    model, training = recipe.model, recipe.training
    parameters = num_parameters(recipe)
    positions = training.windows_per_step * recipe.packing.window_length * recipe.schedule.num_steps
    features = model.attention.num_random_features
    flop = 6 * parameters + 24 * model.hidden_size * features * model.num_layers
    state = parameters * (4 + 16 / machine.num_gpus)
    micro_batch = training.windows_per_micro_batch * recipe.packing.window_length
    activations = 40 * model.hidden_size * model.num_layers * micro_batch
    hours = [flop * positions / (machine.num_gpus * machine.rate * share) / 3600 for share in (0.25, 0.10)]
    return [
        f"{parameters:,}",
        f"{positions / 1e9:.1f} G",
        f"{flop / 1e6:,.0f} M",
        f"{state / 1e9:.1f} GB",
        f"{activations / 1e9:.1f} GB",
        "{:,.0f} to {:,.0f} h".format(*hours),
    ]


@pytest.mark.parametrize("name", MACHINES)
def test_estimates_follow_from_the_recipe_by_the_formulas_given(name):
    assert ESTIMATES[name] == estimates(load_recipe(PIPELINES / name), MACHINES[name])


@pytest.mark.parametrize("name", MACHINES)
def test_time_is_marked_as_an_estimate(name):
    (row,) = [row for row in ROWS if row[0].startswith(f"[{name}]")]
    assert row[3] == f"estimate: {ESTIMATES[name][-1]}"


def test_every_recipe_has_a_row_and_every_estimate_a_recipe():
    listed = {row[0][1:].partition("]")[0] for row in ROWS if row[0].startswith("[")}
    assert listed == {path.name for path in PIPELINES.glob("*.toml")}
    assert set(ESTIMATES) == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_estimated_memory_leaves_a_fifth_of_the_gpu_free(name):
    *_, state, activations, _ = ESTIMATES[name]
    needed = sum(float(amount.removesuffix(" GB")) for amount in (state, activations))
    memory = 24 if MACHINES[name].rate < 200e12 else 80
    # a context of the driver, buckets of DeepSpeed and what the backward pass holds for a moment
    assert needed + 3 < 0.8 * memory


@pytest.mark.parametrize("name", MACHINES)
def test_steps_are_dealt_evenly_to_the_gpus_named(name):
    training = load_recipe(PIPELINES / name).training
    assert training.windows_per_step % (training.windows_per_micro_batch * MACHINES[name].num_gpus) == 0


def kept_bytes(recipe: Recipe, num_layers: int, *, length: int, segment: int) -> int:
    """Return the bytes that the backward pass of a model in bfloat16 keeps of one window, weights aside."""
    model = MaskedLM(replace(recipe.model, num_layers=num_layers), seed=0).to(torch.bfloat16)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        tokens_BL = torch.arange(length)[None] % 20 + 4
        model.encode(tokens_BL, cu_seqlens=torch.arange(0, length + 1, segment, dtype=torch.int32))
    storages = {saved.untyped_storage().data_ptr(): saved.untyped_storage().nbytes() for saved in kept}
    return sum(size for place, size in storages.items() if place not in weights)


def test_a_block_keeps_what_the_formula_says():
    recipe, length = load_recipe(PIPELINES / "swissprot_one_gpu.toml"), 4096
    one, two = (kept_bytes(recipe, num_layers, length=length, segment=256) for num_layers in (1, 2))
    assert (two - one) / length == pytest.approx(40 * recipe.model.hidden_size, rel=0.1)
