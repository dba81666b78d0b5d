"""A masked language model: the encoder and a head that predicts residues."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from proteinlm.attention import AttentionConfig
from proteinlm.errors import ConfigError, ShapeError
from proteinlm.model.block import Surroundings
from proteinlm.model.encoder import Encoder
from proteinlm.model.layers import empty_linear
from proteinlm.model.observer import Observer
from proteinlm.model.rotary import RotaryPositions
from proteinlm.model.settings import ModelConfig
from proteinlm.ops.visibility import Seen, visibility_of
from proteinlm.randomness import stream_key


class MaskedLMHead(nn.Module):
    """Hidden states to logits, through a dense layer and the transposed token embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = empty_linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.bias_V = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return logits (…, V) of hidden states (…, D)."""
        return functional.linear(self.norm(functional.gelu(self.dense(hidden))), embedding_VD, self.bias_V)


class MaskedLM(nn.Module):
    """Bidirectional masked language model with tied input and output embeddings.

    Args:
        config: sizes and mechanism.
        seed: names the streams of the first weights and of the mechanisms' random features.
        draw_weights: False leaves the weights undefined, for a caller who fills them.
    """

    def __init__(self, config: ModelConfig, *, seed: int, draw_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.step = 0
        self.encoder = Encoder(config, seed=seed)
        self.masked_lm_head = MaskedLMHead(config)
        if draw_weights:
            _draw_weights(self, seed)

    def forward(self, tokens_BL: Tensor, *, positions_BL: Tensor | None = None, **seen: Unpack[Seen]) -> Tensor:
        """Return logits_BLV; arguments as for ``encode``."""
        return self.head(self.encode(tokens_BL, positions_BL=positions_BL, **seen))

    def encode(
        self,
        tokens_BL: Tensor,
        *,
        positions_BL: Tensor | None = None,
        dropout_keys_B: Sequence[int] | None = None,
        observer: Observer | None = None,
        **seen: Unpack[Seen],
    ) -> Tensor:
        """Return the hidden states after the final norm, hidden_BLD.

        Args:
            tokens_BL: token ids, int64.
            positions_BL: position of each token in its protein; counts from 0 in every window if None.
            dropout_keys_B: one key a window, in training mode; None drops nothing.
            observer: is shown queries, keys, values and hidden states.
            seen: ``visibility``, or what it is made of: ``key_mask_BL``, ``cu_seqlens`` and ``is_causal``, see
                ``Visibility``. Made once here, and read by every layer.

        Raises:
            ShapeError: if the parts do not fit together.
            ConfigError: if the model cannot be causal.
            PrecisionError: if a reversible trunk cannot be exact any more.
        """
        if tokens_BL.dim() != 2:
            raise ShapeError(f"tokens have shape {tuple(tokens_BL.shape)}; expected (windows, positions)")
        visibility = visibility_of((tokens_BL.shape[0], tokens_BL.shape[1]), **seen)
        if visibility.is_causal and self.config.local_convolution:
            raise ConfigError(
                f"model.local_convolution is {self.config.local_convolution}, which sees later tokens; "
                "a causal model needs 0"
            )
        if positions_BL is None:
            positions_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        if positions_BL.shape != tokens_BL.shape:
            raise ShapeError(f"positions have shape {tuple(positions_BL.shape)} but tokens {tuple(tokens_BL.shape)}")
        if dropout_keys_B is not None and len(dropout_keys_B) != len(tokens_BL):
            raise ShapeError(f"{len(dropout_keys_B)} dropout keys for {len(tokens_BL)} windows; expected one a window")
        rotary = RotaryPositions(
            positions_BL,
            head_dim=self.config.head_dim,
            base=self.config.rotary_base,
            dtype=self.encoder.embedding.weight.dtype,
        )
        around = Surroundings(rotary, visibility, dropout_keys_B, observer)
        hidden_BLD: Tensor = self.encoder(tokens_BL, around)
        return hidden_BLD

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits (…, V) of hidden states (…, D), of all positions or of chosen ones."""
        logits: Tensor = self.masked_lm_head(hidden, self.encoder.embedding.weight)
        return logits

    def set_step(self, step: int) -> None:
        """Tell the mechanisms the number of optimiser steps taken, which decides their redraw."""
        self.step = step
        for mechanism in self.encoder.mechanisms():
            mechanism.set_step(step)

    def start_at_frequencies(self, token_counts_V: Sequence[int]) -> None:
        """Set the output bias to the log frequencies of the tokens, so that training starts at unigram loss.

        Tokens that never occur get the frequency of half an occurrence.
        """
        total = sum(token_counts_V)
        bias = torch.tensor([math.log(max(count, 0.5) / total) for count in token_counts_V])
        with torch.no_grad():
            self.masked_lm_head.bias_V.copy_(bias)

    def with_attention(self, config: AttentionConfig) -> MaskedLM:
        """Return a model of the same weights, shared in memory, with another mechanism.

        Raises:
            ConfigError: if one of the two mechanisms makes keys from queries and the other reads keys of their own.
        """
        other = MaskedLM(dataclasses.replace(self.config, attention=config), seed=self.seed, draw_weights=False)
        if other.encoder.shares_query_key != self.encoder.shares_query_key:
            raise ConfigError(_other_projection(self.config.attention.kind, config.kind, self.encoder.shares_query_key))
        other.load_state_dict(self.state_dict(), assign=True)
        other.set_step(self.step)
        return other.train(self.training)


def _other_projection(own: str, wanted: str, shares_query_key: bool) -> str:
    """Return what is wrong when weights of one projection meet a mechanism that needs the other."""
    if shares_query_key:
        return (
            f"attention is {wanted}, which reads keys of their own, but the weights ({own}) project shared queries and "
            "keys; expected lsh or softmax with shared_query_key = true, or a model trained without it"
        )
    return (
        f"attention is {wanted} with shared_query_key = true, but the weights ({own}) project separate queries and "
        "keys; train with shared_query_key = true, or run them with shared_query_key = false"
    )


def _draw_weights(model: MaskedLM, seed: int) -> None:
    """Fill every weight from the stream of its own name: N(0, 0.02), residual outputs scaled down.

    Drawn in float32 whatever the weights are, so that a seed is one model in every dtype.
    """
    residual_scale = (2 * model.config.num_layers) ** -0.5
    for name, weight in model.named_parameters():
        if name.endswith(("norm.weight", "norm.bias", "logit_H", "bias_V")):
            continue
        with torch.no_grad():
            if weight.dim() == 1:
                weight.zero_()
                continue
            generator = torch.Generator(device="cpu").manual_seed(stream_key(seed, "weights", name))
            scale = 0.02 * (residual_scale if name.endswith(("output.weight", "outer.weight")) else 1.0)
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float32) * scale)
