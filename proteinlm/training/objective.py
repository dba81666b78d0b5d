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
    """The module that an engine trains: a batch in, its summed loss and its right answers out.

    Args:
        model: what is trained.
        loss_chunk: positions of each window whose logits and loss are computed at a time; 0: all.
    """

    def __init__(self, model: MaskedLM, *, loss_chunk: int = 0) -> None:
        super().__init__()
        self.model = model
        self.loss_chunk = loss_chunk

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats and the number of right answers, both scalars."""
        keys_B = [stream_key(key, "step", self.model.step) for key in batch.window_keys] or None
        return masked_loss(self.model, batch, dropout_keys_B=keys_B, loss_chunk=self.loss_chunk)
