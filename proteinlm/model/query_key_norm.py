"""Query-key normalisation: attention logits with a learned bound.

The exponential in |q + k|^2 is what makes random features fail, so queries and keys are brought to
one length per head. This belongs to the model and not to the mechanism: weights keep their meaning
when the mechanism is swapped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proteinlm.model.rotary import RotaryPositions
from proteinlm.model.stretched_turn import stretch, stretch_and_turn


class QueryKeyNorm(nn.Module):
    """Scale queries and keys so that q . k / sqrt(K) = temperature * cos(q, k).

    The temperature of each head is learned between 0 and ``max_temperature`` (a logistic function
    of ``logit_H``, at the middle to begin with). With x = q / K^(1/4) both |x|^2 and |y|^2 equal it.

    Args:
        num_heads: H.
        head_dim: K.
        max_temperature: the largest logit that any pair can reach.

    Source: Henry et al., arXiv:2010.04245, with a bound for random features (docs/numerics.md).
    """

    def __init__(self, *, num_heads: int, head_dim: int, max_temperature: float) -> None:
        super().__init__()
        self.logit_H = nn.Parameter(torch.zeros(num_heads))
        self.head_dim = head_dim
        self.max_temperature = max_temperature

    def temperature_H(self) -> Tensor:
        """Return the temperature of each head."""
        return self.max_temperature * torch.sigmoid(self.logit_H)

    def forward(
        self, q_BLHK: Tensor, k_BLHK: Tensor | None, rotary: RotaryPositions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys of length sqrt(temperature) * K^(1/4), turned to their positions by ``rotary``.

        Without ``k_BLHK`` the mechanism makes keys of length 1 from the queries, which therefore get the length
        temperature * sqrt(K); they come back twice.
        """
        if k_BLHK is None:
            length_H1 = (self.temperature_H() * self.head_dim**0.5)[:, None]
            q_BLHK = _of_length(q_BLHK, length_H1, rotary)
            return q_BLHK, q_BLHK
        length_H1 = (self.temperature_H().sqrt() * self.head_dim**0.25)[:, None]
        return _of_length(q_BLHK, length_H1, rotary), _of_length(k_BLHK, length_H1, rotary)


def _of_length(x_BLHK: Tensor, length_H1: Tensor, rotary: RotaryPositions | None) -> Tensor:
    return stretch(x_BLHK, length_H1) if rotary is None else stretch_and_turn(x_BLHK, length_H1, rotary)
