"""The optimiser and the run of its learning rate."""

from __future__ import annotations

import pytest
import torch

from proteinlm.training.optimiser import OptimiserConfig, ScheduleConfig, build_optimiser


def test_rate_rises_to_its_peak_and_falls_to_its_final_share():
    schedule = ScheduleConfig(num_steps=110, warmup_steps=10, final_share=0.1)
    assert schedule.share(0) == pytest.approx(0.1)
    assert schedule.share(9) == pytest.approx(1.0)
    assert schedule.share(60) == pytest.approx(0.1 + 0.9 / 2)
    assert schedule.share(110) == pytest.approx(0.1)


def test_linear_decay_is_a_line():
    schedule = ScheduleConfig(num_steps=100, warmup_steps=0, decay="linear", final_share=0.0)
    assert [schedule.share(step) for step in (0, 25, 75)] == pytest.approx([1.0, 0.75, 0.25])


def test_only_matrices_decay():
    layer = torch.nn.Linear(3, 4)
    decaying, kept = build_optimiser(layer.named_parameters(), OptimiserConfig(weight_decay=0.2)).param_groups
    assert (decaying["params"][0] is layer.weight, decaying["weight_decay"]) == (True, 0.2)
    assert (kept["params"][0] is layer.bias, kept["weight_decay"]) == (True, 0.0)


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"num_steps": 5, "warmup_steps": 6}, {"final_share": 2.0}])
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        ScheduleConfig(**settings)
