"""LSH attention with separate queries and keys: exact blocks and a sample of all other keys."""

from __future__ import annotations

from torch import Tensor

from proteinlm.attention.lsh import LshConfig
from proteinlm.attention.redrawn import OrderedAttention
from proteinlm.ops import sampled_attention as ops
from proteinlm.ops.visibility import Visibility


class SeparateLshAttention(OrderedAttention):
    """Softmax attention estimated from the block of keys that a hash finds, and from a weighted sample of the others.

    Numerator and normaliser are unbiased, so it reads weights of a model that was trained with softmax. Hash and sample
    are a pure function of (seed, layer, draw), neither parameter nor buffer: no checkpoint holds them.
    """

    def __init__(self, config: LshConfig, *, head_dim: int, layer: int, seed: int) -> None:
        super().__init__(head_dim=head_dim, layer=layer, seed=seed, redraw_interval=config.redraw_interval)
        self.config = config

    @property
    def sampling(self) -> ops.BlockSampling:
        """The blocks and the sample in use."""
        return ops.BlockSampling(
            block_length=self.config.chunk_length,
            num_sampled_keys=self.config.num_sampled_keys,
            seed=self.seed,
            layer=self.layer,
            draw=self.draw,
        )

    def extra_repr(self) -> str:
        """Name the settings that tell one mechanism from another."""
        return f"blocks of {self.config.chunk_length}, {self.config.num_sampled_keys} sampled keys, {self.redrawing}"

    def _attend_in_order(
        self, inputs: tuple[Tensor, Tensor, Tensor], orders_2HT: Tensor, visibility: Visibility
    ) -> Tensor:
        return ops.sampled_attention(*inputs, orders_2HT, self.sampling, visibility=visibility)

    def _map(self, q_BLHK: Tensor, k_BLHK: Tensor, visibility: Visibility, rows: slice, heads: slice) -> Tensor:
        orders_2HT = self.hash_orders(q_BLHK, k_BLHK, visibility)
        # each head has a sample of its own
        return ops.sampled_map(q_BLHK, k_BLHK, orders_2HT, self.sampling, rows=rows, heads=heads, visibility=visibility)
