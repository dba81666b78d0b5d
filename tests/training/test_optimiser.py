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


def test_warm_up_stable_decay_keeps_the_peak_until_the_last_share_of_the_steps():
    schedule = ScheduleConfig(num_steps=100, warmup_steps=10, decay="wsd", decay_share=0.2, final_share=0.1)
    assert {schedule.share(step) for step in range(10, 81)} == {1.0}
    assert [schedule.share(step) for step in (9, 85, 90, 100)] == pytest.approx([1.0, 0.775, 0.55, 0.1])
    assert ScheduleConfig(num_steps=100, warmup_steps=95, decay="wsd", decay_share=0.2).decay_start == 95


def test_constant_schedule_stays_at_its_peak_to_the_end():
    schedule = ScheduleConfig(num_steps=20, warmup_steps=5, decay="constant", final_share=0.35)
    assert {schedule.share(step) for step in range(5, 20)} == {1.0}


@pytest.mark.parametrize(
    ("decay", "step"),
    # decay begins with the peak itself, so the first other rate is one step later
    [("constant", None), ("wsd", 91), ("linear", 11), ("cosine", 11)],
    ids=["constant", "wsd", "linear", "cosine"],
)
def test_more_steps_differ_from_where_the_rate_has_begun_to_fall(decay, step):
    first, more = (ScheduleConfig(num_steps=num, warmup_steps=10, decay=decay) for num in (100, 200))
    assert first.first_difference(more, 100) == step


def test_only_matrices_decay():
    layer = torch.nn.Linear(3, 4)
    decaying, kept = build_optimiser(layer.named_parameters(), OptimiserConfig(weight_decay=0.2)).param_groups
    assert (decaying["params"][0] is layer.weight, decaying["weight_decay"]) == (True, 0.2)
    assert (kept["params"][0] is layer.bias, kept["weight_decay"]) == (True, 0.0)


@pytest.mark.parametrize(
    "settings", [{"num_steps": 0}, {"num_steps": 5, "warmup_steps": 6}, {"final_share": 2.0}, {"decay_share": -0.1}]
)
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(ValueError, match="expected"):
        ScheduleConfig(**settings)
