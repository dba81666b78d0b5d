"""Rotary positions."""

from __future__ import annotations

import math

import torch

from proteinlm.model.rotary import RotaryPositions


def test_pairs_turn_by_position_times_rate():
    positions = torch.tensor([[0, 3]])
    x = torch.randn(1, 2, 1, 6, dtype=torch.float64)
    turned = RotaryPositions(positions, head_dim=6, base=100.0, dtype=torch.float64).turn(x)
    for i in range(3):
        angle = 3 * 100.0 ** (-2 * i / 6)
        first, second = x[0, 1, 0, i], x[0, 1, 0, i + 3]
        expected = (
            first * math.cos(angle) - second * math.sin(angle),
            second * math.cos(angle) + first * math.sin(angle),
        )
        assert torch.allclose(turned[0, 1, 0, [i, i + 3]], torch.stack(expected), atol=1e-14)
    assert torch.equal(turned[0, 0], x[0, 0])


def test_angles_stay_exact_at_a_million_residues():
    positions = torch.tensor([[1_000_000]])
    x = torch.eye(4)[:1].view(1, 1, 1, 4)
    turned = RotaryPositions(positions, head_dim=4, base=10_000.0, dtype=torch.float32).turn(x)
    assert abs(turned[0, 0, 0, 0].item() - math.cos(1_000_000)) < 1e-6
