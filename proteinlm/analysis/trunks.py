"""One set of weights behind several kinds of attention, and what each makes of a protein."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proteinlm.analysis import agreement
from proteinlm.analysis.agreement import MapLayout, NormStatistics
from proteinlm.analysis.attention_maps import HiddenErrors, LayerViewer, layer_attention, map_rows
from proteinlm.analysis.baselines import with_uniform_attention
from proteinlm.analysis.results import ComparisonConfig, Figures
from proteinlm.attention import FavorConfig, IdentityConfig, SoftmaxConfig
from proteinlm.batches.packing import Context
from proteinlm.errors import ConfigError
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.sequence.alphabet import CLS, EOS


@dataclass(frozen=True, slots=True)
class Trunks:
    """Models of the same weights, shared in memory.

    favor holds one model for each number of features and draw, in this order; draw r is redraw r of
    the run's seed.
    """

    trained: MaskedLM
    exact: MaskedLM
    favor: tuple[tuple[MaskedLM, ...], ...]
    uniform: MaskedLM
    identity: MaskedLM

    @property
    def feature_map(self) -> str:
        """Feature map of the FAVOR+ models."""
        return favor_settings(self.favor[0][0]).feature_map


def favor_settings(model: MaskedLM) -> FavorConfig:
    """Return the settings of the model's FAVOR+; those of a default one where it attends otherwise."""
    settings = model.config.attention
    return settings if isinstance(settings, FavorConfig) else FavorConfig()


def check_kernel(model: MaskedLM) -> None:
    """Raise unless exact softmax is what the model's FAVOR+ estimates.

    Raises:
        ConfigError: if the model has a kernel of its own, or shares queries and keys.
    """
    settings = favor_settings(model)
    if model.encoder.shares_query_key:
        raise ConfigError(
            "the checkpoint's keys are its queries, and none attends to itself but in the last resort: random features "
            "cannot leave a position out and estimate no such attention; measure its distance from exact attention by "
            "proteinlm evaluate --set kind=softmax"
        )
    if settings.feature_map == "generalised":
        raise ConfigError(
            f'the checkpoint attends by feature_map = "generalised" with the function {settings.kernel_function}, a '
            "kernel of its own: exact softmax is not what it estimates, and no distance from it is an error; compare a "
            "checkpoint of softmax attention or of another feature_map, and judge this one by proteinlm evaluate"
        )


def build_trunks(model: MaskedLM, settings: ComparisonConfig) -> Trunks:
    """Return the weights of ``model`` behind every kind of attention of the comparison.

    FAVOR+ runs by its features alone, also in the trained model: ``exact_below`` counts as 0.

    Raises:
        ConfigError: if the model's feature map cannot have one of the numbers of features.
    """
    own = dataclasses.replace(favor_settings(model), exact_below=0)
    if favor_settings(model).exact_below:
        model = model.with_attention(own)

    def favor(num_features: int, draw: int) -> MaskedLM:
        try:
            # with an interval of one step, step r names redraw r
            attention = dataclasses.replace(own, num_random_features=num_features, redraw_interval=1)
        except ValueError as error:
            raise ConfigError(f"features: {error}") from error
        trunk = model.with_attention(attention)
        trunk.set_step(draw)
        return trunk

    return Trunks(
        trained=model,
        exact=model.with_attention(SoftmaxConfig()),
        favor=tuple(tuple(favor(m, r) for r in range(settings.num_draws)) for m in settings.num_random_features),
        uniform=with_uniform_attention(model),
        identity=model.with_attention(IdentityConfig()),
    )


@dataclass(frozen=True, slots=True)
class ProteinWindow:
    """A protein with the special tokens it had in training; residues are ``first:last``."""

    tokens_BL: Tensor
    first: int
    last: int


def protein_window(tokens: NDArray[np.uint8], context: Context, device: torch.device) -> ProteinWindow:
    """Return ``<cls>`` residues ``<eos>``, or residues ``<eos>`` where windows are joint."""
    framed = [CLS, *tokens.tolist(), EOS] if context == "isolated" else [*tokens.tolist(), EOS]
    first = 1 if context == "isolated" else 0
    return ProteinWindow(torch.tensor([framed], device=device), first, first + len(tokens))


def measure_hidden(trunks: Trunks, window: ProteinWindow, exact: list[Tensor]) -> dict[str, Figures]:
    """Return the error of every other trunk's hidden states, by the fields of ``TrunkFigures``."""

    def errors(model: MaskedLM) -> list[float]:
        observer = HiddenErrors(exact)
        model.encode(window.tokens_BL, observer=observer)
        return observer.errors

    favor_FRE = np.array([[errors(model) for model in draws] for draws in trunks.favor])
    return {
        "hidden_error_QEFR": favor_FRE.transpose(2, 0, 1),
        "uniform_hidden_error_QE": np.array(errors(trunks.uniform)),
        "identity_hidden_error_QE": np.array(errors(trunks.identity)),
    }


def run_exact(
    trunks: Trunks, window: ProteinWindow, settings: ComparisonConfig, *, with_maps: bool
) -> tuple[list[Tensor], dict[str, Figures]]:
    """Run a protein through exact softmax; measure its maps layer by layer on the way, if wanted.

    Returns:
        The hidden states 0 … N, and the figures by the fields of ``MapFigures``, empty without maps.
    """
    layers: list[dict[str, Figures]] = []

    def see_layer(layer: int, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> None:
        layers.append(_measure_layer(trunks, layer, (q_BLHK, k_BLHK, v_BLHK), layout))

    layout = map_layout(window, trunks.exact.config.num_heads, settings)
    viewer = LayerViewer(see_layer if with_maps else None)
    trunks.exact.encode(window.tokens_BL, observer=viewer)
    figures = {name: np.stack([layer[name] for layer in layers]) for name in layers[0]} if layers else {}
    return viewer.hidden_states, figures


def map_layout(window: ProteinWindow, num_heads: int, settings: ComparisonConfig) -> MapLayout:
    """Return the layout of the window's maps."""
    length = window.tokens_BL.shape[1]
    return MapLayout(
        num_positions=length,
        first_residue=window.first,
        last_residue=window.last,
        separation=settings.separation,
        block_rows=agreement.block_rows(num_heads, length),
    )


def _measure_layer(
    trunks: Trunks, layer: int, seen: tuple[Tensor, Tensor, Tensor], layout: MapLayout
) -> dict[str, Figures]:
    q_BLHK, k_BLHK, _ = seen
    q_HLK, k_HLK, v_HLK = (tensor[0].transpose(0, 1) for tensor in seen)
    attentions = [layer_attention(model, layer) for draws in trunks.favor for model in draws]
    exact = map_rows(layer_attention(trunks.exact, layer), q_BLHK, k_BLHK)
    found = agreement.compare_maps(exact, [map_rows(a, q_BLHK, k_BLHK) for a in attentions], v_HLK, layout)
    norms = agreement.norm_statistics(q_HLK, k_HLK, feature_map=trunks.feature_map, block_rows=layout.block_rows)

    def by_candidate(name: str) -> Figures:
        values_XH = np.stack([getattr(one, name).cpu().numpy() for one in found.approximations])
        return values_XH.reshape(len(trunks.favor), len(trunks.favor[0]), -1).transpose(2, 0, 1)

    return {
        "total_variation_PNHFR": by_candidate("total_variation_H"),
        "output_error_PNHFR": by_candidate("output_error_H"),
        "top_overlap_PNHFR": by_candidate("top_overlap_H"),
        "uniform_total_variation_PNH": found.uniform.total_variation_H.cpu().numpy(),
        "uniform_output_error_PNH": found.uniform.output_error_H.cpu().numpy(),
        "identity_output_error_PNH": found.identity_output_error_H.cpu().numpy(),
        "entropy_PNH": found.entropy_H.cpu().numpy(),
        **_norm_figures(norms),
    }


def _norm_figures(norms: NormStatistics) -> dict[str, Figures]:
    return {
        "query_norm_PNH": norms.query_norm_H.cpu().numpy(),
        "key_norm_PNH": norms.key_norm_H.cpu().numpy(),
        "sum_norm_PNH": norms.sum_norm_H.cpu().numpy(),
        "kernel_deviation_PNH": norms.kernel_deviation_H.cpu().numpy(),
    }
