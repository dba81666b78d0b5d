"""The training objective: cross-entropy of hidden residues, summed and not averaged.

The mean is taken over all targets of the global batch, which a micro-batch cannot know: means of
means differ as soon as the counts do.
"""

from __future__ import annotations

from torch import Tensor, nn

from proteinlm.batches.loader import MaskedBatch
from proteinlm.inference.evaluation import masked_loss
from proteinlm.model import MaskedLM
from proteinlm.randomness import stream_key


class MaskedLMObjective(nn.Module):
    """The module that an engine trains: a batch in, its summed loss and its right answers out."""

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats and the number of right answers, both scalars."""
        keys_B = [stream_key(key, "step", self.model.step) for key in batch.window_keys] or None
        return masked_loss(self.model, batch, dropout_keys_B=keys_B)
