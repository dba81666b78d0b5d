"""The training objective: cross-entropy of hidden residues, summed and not averaged.

The mean is taken over all targets of the global batch, which a micro-batch cannot know: means of
means differ as soon as the counts do.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from proteinlm.batches.loader import MaskedBatch
from proteinlm.batches.masking import NOT_CHOSEN
from proteinlm.model import MaskedLM
from proteinlm.randomness import stream_key


class MaskedLMObjective(nn.Module):
    """The module that an engine trains: a batch in, its summed loss and its right answers out."""

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy in nats and the number of right answers, both scalars.

        Logits are computed at the targets only.
        """
        keys_B = [stream_key(key, "step", self.model.step) for key in batch.window_keys] or None
        hidden_BLD = self.model.encode(
            batch.tokens_BL,
            positions_BL=batch.positions_BL,
            key_mask_BL=batch.key_mask_BL,
            cu_seqlens=batch.cu_seqlens,
            dropout_keys_B=keys_B,
        )
        is_target_BL = batch.targets_BL != NOT_CHOSEN
        targets = batch.targets_BL[is_target_BL]
        logits = self.model.head(hidden_BLD[is_target_BL]).float()
        loss = functional.cross_entropy(logits, targets, reduction="sum")
        return loss, (logits.argmax(dim=-1) == targets).sum()
