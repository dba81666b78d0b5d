"""With the same weights: how far is FAVOR+ from exact softmax, in every head and end to end."""

from __future__ import annotations

import hashlib
import heapq
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import proteinlm
from proteinlm.analysis import trunks as trunk_room
from proteinlm.analysis.attention_maps import LayerViewer, layer_attention, reduced_map
from proteinlm.analysis.history import read_history
from proteinlm.analysis.masked_residues import EncodedProteins, evaluate_trunks, whole_protein_packing
from proteinlm.analysis.results import (
    ComparedProtein,
    ComparisonConfig,
    ComparisonReport,
    Figures,
    MapExample,
    MapFigures,
    ReadingCounts,
    TrunkFigures,
)
from proteinlm.analysis.trunks import ProteinWindow, Trunks
from proteinlm.batches.packing import Context, PackingConfig
from proteinlm.config import to_table
from proteinlm.errors import ConfigError, FastaError, PrecisionError
from proteinlm.inference.evaluation import TOKEN_COUNTS
from proteinlm.inference.pretrained import PretrainedModel, load
from proteinlm.model.checkpoint import weights_digest
from proteinlm.progress import SILENT, Progress
from proteinlm.randomness import stream_key
from proteinlm.sequence.alphabet import encode
from proteinlm.sequence.fasta import FastaRecord
from proteinlm.sequence.screening import looks_like_nucleotides

# cells of a drawn map's side: about as many as the picture has dots for it
MOST_CELLS = 330


def compare_checkpoint(
    records: Iterable[FastaRecord],
    checkpoint: str | Path,
    settings: ComparisonConfig | None = None,
    *,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> ComparisonReport:
    """Run a checkpoint's weights with exact softmax and with FAVOR+ and measure what differs.

    Args:
        records: proteins; those drawn by the seed are kept in memory, in the order read.
        checkpoint: a checkpoint folder or a run folder that holds one.
        settings: what to compare; the defaults if None.
        device: where to run, as torch names it.
        progress: is told the proteins done.

    Raises:
        CheckpointError: if there is no whole checkpoint.
        ConfigError: if every protein is longer than ``settings.max_length``, or the checkpoint's feature map
            does not estimate softmax.
        FastaError: if there is no record with residues.
        PrecisionError: if exact softmax itself gives values that are not finite.
        UnavailableError: if the device is not on this machine.
    """
    settings = settings or ComparisonConfig()
    pretrained = load(checkpoint, device=device, dtype="float32")
    trunk_room.check_kernel(pretrained.model)
    chosen, counts = choose_records(records, settings)
    proteins = _described(chosen, settings)
    tokens = [encode(record.residues).tokens for record in chosen]
    encoded = EncodedProteins([record.identifier for record in chosen], tokens)
    packing = whole_protein_packing(_trained_packing(pretrained), encoded)
    # autocast around the caller would round exact softmax, and that alone, and charge the others with it
    with torch.inference_mode(), torch.autocast(pretrained.device.type, enabled=False):
        trunks = trunk_room.build_trunks(pretrained.model, settings)
        windows = [trunk_room.protein_window(one, packing.context, pretrained.device) for one in tokens]
        maps, hidden = _measure_proteins(trunks, windows, proteins, settings, progress)
        masked = evaluate_trunks(
            trunks, encoded, packing, settings, token_counts=pretrained.metadata.get(TOKEN_COUNTS), progress=progress
        )
        shown = _shown_features(pretrained, settings)
        examples = _examples(trunks, windows, proteins, maps, settings, shown)
    own = trunk_room.favor_settings(pretrained.model)
    return ComparisonReport(
        settings=settings,
        provenance=_provenance(pretrained, chosen),
        trained_attention=to_table(pretrained.model.config.attention),
        feature_map=own.feature_map,
        projection=own.projection,
        head_dim=pretrained.model.config.head_dim,
        counts=counts,
        proteins=proteins,
        maps=maps,
        trunk=TrunkFigures(**hidden, **masked),
        examples=examples,
        shown_features=shown,
        history=read_history(pretrained.path),
    )


def choose_records(
    records: Iterable[FastaRecord], settings: ComparisonConfig
) -> tuple[list[FastaRecord], ReadingCounts]:
    """Draw the proteins to compare: those with the smallest keys of (seed, place, identifier).

    Raises:
        FastaError: if there is no record with residues.
    """
    num_read = num_empty = 0

    def with_residues() -> Iterable[tuple[int, FastaRecord]]:
        nonlocal num_read, num_empty
        for place, record in enumerate(records):
            num_read += 1
            num_empty += not record.residues
            if record.residues:
                yield place, record

    def key(item: tuple[int, FastaRecord]) -> int:
        return stream_key(settings.seed, "compare", item[0], item[1].identifier)

    limit = settings.max_sequences
    drawn = list(with_residues()) if limit is None else heapq.nsmallest(limit, with_residues(), key=key)
    chosen = [record for _, record in sorted(drawn, key=lambda item: item[0])]
    if not chosen:
        raise FastaError(f"no sequence to compare: {num_read} records were read, {num_empty} of them without residues")
    substitutions: Counter[str] = Counter()
    for record in chosen:
        substitutions.update(encode(record.residues).substitutions)
    num_too_long = sum(len(record.residues) > settings.max_length for record in chosen)
    num_not_drawn = num_read - num_empty - len(chosen)
    num_nucleotides = sum(looks_like_nucleotides(record.residues) for record in chosen)
    counts = ReadingCounts(num_read, num_empty, num_not_drawn, num_too_long, dict(substitutions), num_nucleotides)
    return chosen, counts


def _described(chosen: Sequence[FastaRecord], settings: ComparisonConfig) -> tuple[ComparedProtein, ...]:
    lengths = [len(record.residues) for record in chosen]
    if min(lengths) > settings.max_length:
        raise ConfigError(
            f"max_length is {settings.max_length:,} but the shortest of the {len(chosen)} proteins to compare has "
            f"{min(lengths):,} residues; raise it, maps are computed in blocks of rows"
        )
    return tuple(
        ComparedProtein(record.identifier, length, length <= settings.max_length)
        for record, length in zip(chosen, lengths, strict=True)
    )


def _measure_proteins(
    trunks: Trunks,
    windows: Sequence[ProteinWindow],
    proteins: Sequence[ComparedProtein],
    settings: ComparisonConfig,
    progress: Progress,
) -> tuple[MapFigures, dict[str, Any]]:
    maps: list[dict[str, Figures]] = []
    hidden: list[dict[str, Figures]] = []
    chance: list[float] = []
    progress.start("maps and hidden states", len(windows), "proteins")
    for window, protein in zip(windows, proteins, strict=True):
        states, figures = trunk_room.run_exact(trunks, window, settings, with_maps=protein.has_maps)
        _refuse_not_finite(states, protein)
        hidden.append(trunk_room.measure_hidden(trunks, window, states))
        if protein.has_maps:
            maps.append(figures)
            chance.append(trunk_room.map_layout(window, 1, settings).chance_overlap)
        progress.advance(1)
    progress.finish()
    lengths = [window.tokens_BL.shape[1] for window, p in zip(windows, proteins, strict=True) if p.has_maps]
    return MapFigures(**_stacked(maps), chance_overlap_P=np.array(chance), uniform_entropy_P=np.log(lengths)), _stacked(
        hidden
    )


def _refuse_not_finite(states: Sequence[Tensor], protein: ComparedProtein) -> None:
    """Refuse a yardstick that does not exist: nothing has a distance from it."""
    for layer, hidden_BLD in enumerate(states):
        if not hidden_BLD.isfinite().all():
            raise PrecisionError(
                f"with exact softmax, hidden states {layer} of '{protein.identifier}' are not finite, although every "
                "weight is: the model computes values beyond float32, and no attention can be compared with that"
            )


def _stacked(figures: Sequence[Mapping[str, Figures]]) -> dict[str, Figures]:
    """Return figures of several proteins as arrays; a distance that is infinite is none, and becomes NaN.

    The deviation that theory gives stays infinite, which is what it says of norms that large.
    """
    stacked = {name: np.stack([one[name] for one in figures]) for name in figures[0]}
    return {
        name: values if name == "kernel_deviation_PNH" else np.where(np.isinf(values), np.nan, values)
        for name, values in stacked.items()
    }


def _shown_features(pretrained: PretrainedModel, settings: ComparisonConfig) -> int:
    """Return the measured number of features nearest to the trained one, on a logarithmic scale."""
    own = trunk_room.favor_settings(pretrained.model).num_random_features
    return min(settings.num_random_features, key=lambda m: abs(math.log(m / own)))


def _examples(
    trunks: Trunks,
    windows: Sequence[ProteinWindow],
    proteins: Sequence[ComparedProtein],
    maps: MapFigures,
    settings: ComparisonConfig,
    shown: int,
) -> tuple[MapExample, ...]:
    """Return the maps of the protein of median length, of its best, median and worst head."""
    mapped = [index for index, protein in enumerate(proteins) if protein.has_maps]
    by_length = sorted(range(len(mapped)), key=lambda place: proteins[mapped[place]].num_residues)
    place = by_length[(len(by_length) - 1) // 2]
    window, protein = windows[mapped[place]], proteins[mapped[place]]
    column = settings.num_random_features.index(shown)
    errors_NH = maps.output_error_PNHFR[place, :, :, column].mean(-1)
    order = np.argsort(errors_NH, axis=None, kind="stable")
    picks = {"smallest": order[0], "median": order[(len(order) - 1) // 2], "largest": order[-1]}
    wanted = {divmod(int(flat), errors_NH.shape[1]): reason for reason, flat in picks.items()}
    found: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
    inside = slice(window.first, window.last)

    def see_layer(layer: int, q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor) -> None:
        for layer_of_head, head in wanted:
            if layer_of_head == layer:
                attentions = [layer_attention(model, layer) for model in (trunks.exact, trunks.favor[column][0])]
                found[layer, head] = [
                    reduced_map(one, q_BLHK, k_BLHK, head=head, inside=inside, most_cells=MOST_CELLS)
                    for one in attentions
                ]

    trunks.exact.encode(window.tokens_BL, observer=LayerViewer(see_layer))
    return tuple(
        MapExample(
            identifier=protein.identifier,
            num_residues=protein.num_residues,
            layer=layer,
            head=head,
            reason=reason,
            num_features=shown,
            output_error=float(errors_NH[layer, head]),
            exact_CC=found[layer, head][0],
            approximate_CC=found[layer, head][1],
        )
        for (layer, head), reason in wanted.items()
    )


def _trained_packing(pretrained: PretrainedModel) -> PackingConfig:
    default = PackingConfig()
    return PackingConfig(
        window_length=pretrained.window_length or default.window_length, context=cast(Context, pretrained.context)
    )


def _provenance(pretrained: PretrainedModel, chosen: Sequence[FastaRecord]) -> dict[str, Any]:
    model = pretrained.model
    return {
        "checkpoint": str(pretrained.path),
        "step": pretrained.step,
        "weights_sha256": weights_digest(pretrained.path),
        "checkpoint_metadata": {key: value for key, value in pretrained.metadata.items() if key != TOKEN_COUNTS},
        "model": to_table(model.config),
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "context": pretrained.context,
        "sources": sorted({record.source for record in chosen}),
        "sequences_sha256": sequences_digest(chosen),
        "versions": {
            "proteinlm": proteinlm.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": str(pretrained.device),
        "dtype": "float32",
    }


def sequences_digest(records: Iterable[FastaRecord]) -> str:
    """Return the sha256 of the compared records as lines ``>identifier`` and residues, hexadecimal."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(b">" + record.identifier.encode() + b"\n" + record.residues + b"\n")
    return digest.hexdigest()
