"""Embeddings of whole proteins: their hidden states, per residue or averaged.

Each protein is a segment ``<cls>`` residues ``<eos>`` with positions of its own; a batch is one row
of segments without padding. Nothing is truncated unless asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, TypeAlias, get_args

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from proteinlm.batches.token_budget import in_token_batches
from proteinlm.errors import ConfigError, FastaError, OutputError, ProteinLMError, UnavailableError
from proteinlm.inference.given_sequences import SequenceLike, given_sequences, refuse_other_than_sequences
from proteinlm.model import MaskedLM
from proteinlm.ops.visibility import Visibility
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence import alphabet
from proteinlm.sequence.screening import looks_like_nucleotides
from proteinlm.sequence.wording import nucleotide_warning

Kind: TypeAlias = Literal["mean", "per_tok", "bos"]
FloatType: TypeAlias = Literal["float16", "float32", "float64"]
LayerArrays: TypeAlias = dict[int, NDArray[numpy.floating]]

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
    """What to embed, and in batches of which size."""

    include: tuple[Kind, ...] = ("mean",)
    repr_layers: tuple[int, ...] = (-1,)  # 0 is the embedding, N the last block and the final norm; -1 is N
    toks_per_batch: int = 4096
    truncation_seq_length: int | None = None  # residues kept of a longer protein; None keeps all
    dtype: FloatType = "float32"

    def __post_init__(self) -> None:
        for kind in self.include:
            if kind not in KINDS:
                raise ConfigError(f"include: found '{kind}'; expected one or more of {', '.join(KINDS)}")
        if not self.include or not self.repr_layers:
            raise ConfigError("include and repr_layers name nothing; expected at least one kind and one layer")
        if self.toks_per_batch < 1:
            raise ConfigError(f"toks_per_batch is {self.toks_per_batch}; expected 1 or more")
        if self.truncation_seq_length is not None and self.truncation_seq_length < 1:
            raise ConfigError(f"truncation_seq_length is {self.truncation_seq_length}; expected 1 or more")
        if self.dtype not in get_args(FloatType):
            raise ConfigError(f"dtype is '{self.dtype}'; expected one of {', '.join(get_args(FloatType))}")


@dataclass(frozen=True)
class EncodedSequence:
    """A sequence as the model will see it.

    Attributes:
        index: place in the input, from 0.
        residues: letters as read, shortened if asked for.
        tokens: uint8 token ids, one a residue, without special tokens.
        num_cut: residues cut away by ``truncation_seq_length``.
        substitutions: what was replaced, by kind as ``alphabet.encode`` names it.
        source: where it was read, for messages.
    """

    identifier: str
    index: int
    residues: bytes
    tokens: NDArray[numpy.uint8]
    num_cut: int
    substitutions: Mapping[str, int]
    source: str


@dataclass(frozen=True)
class SequenceEmbedding:
    """What the model makes of one protein.

    Attributes:
        identifier: as given.
        index: place in the input, from 0.
        length: residues embedded.
        num_cut: residues cut away by ``truncation_seq_length``.
        substitutions: what was replaced, by kind as ``alphabet.encode`` names it.
        mean: layer -> mean over the residues, (D,); special tokens are left out.
        per_tok: layer -> one row a residue, (length, D).
        bos: layer -> the hidden state of ``<cls>``, (D,).
    """

    identifier: str
    index: int
    length: int
    num_cut: int = 0
    substitutions: Mapping[str, int] = field(default_factory=dict)
    mean: LayerArrays = field(default_factory=dict)
    per_tok: LayerArrays = field(default_factory=dict)
    bos: LayerArrays = field(default_factory=dict)


@dataclass(frozen=True)
class FailedSequence:
    """A sequence that has no embedding, and why."""

    identifier: str
    index: int
    length: int
    error: ProteinLMError


Outcome: TypeAlias = SequenceEmbedding | FailedSequence


class TrainedModel(Protocol):
    """What embedding needs of a ``PretrainedModel``."""

    @property
    def model(self) -> MaskedLM:
        """Return the model, in evaluation mode."""

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""

    @property
    def num_layers(self) -> int:
        """Return the number of blocks of the trunk."""

    @property
    def context(self) -> str:
        """Return how proteins shared a window in training."""


def embed_records(
    pretrained: TrainedModel,
    sequences: Iterable[SequenceLike],
    config: EmbeddingConfig,
    *,
    progress: Progress = SILENT,
) -> Iterator[SequenceEmbedding]:
    """Yield the embedding of each sequence, in the order given.

    Memory grows with ``toks_per_batch`` and the longest protein, not with the number of sequences. Warns of
    sequences that look like nucleotides.

    Raises:
        ConfigError: if a layer does not exist or the model cannot give what is asked.
        FastaError: if a sequence is none, or has no residues.
        OutputError: if an embedding is not finite in ``config.dtype``.
        UnavailableError: if a sequence needs more memory than there is.
    """
    embedder = Embedder(pretrained, config)
    refuse_other_than_sequences(sequences)
    encoded = _warning_of_nucleotides(encode_sequences(sequences, config))
    return _first_failure_raises(embedder, encoded, progress)


def _first_failure_raises(
    embedder: Embedder, sequences: Iterable[EncodedSequence], progress: Progress
) -> Iterator[SequenceEmbedding]:
    progress.start("embed", None, "residue")
    try:
        for batch in embedder.batches(sequences):
            for outcome in embedder.embed(batch):
                if isinstance(outcome, FailedSequence):
                    raise outcome.error
                yield outcome
            progress.advance(sum(len(sequence.tokens) for sequence in batch))
    finally:
        progress.finish()


def encode_sequences(sequences: Iterable[SequenceLike], config: EmbeddingConfig) -> Iterator[EncodedSequence]:
    """Yield each sequence as token ids, numbered from 0.

    Raises:
        FastaError: if one is no sequence, as ``given_sequences`` says.
    """
    for index, given in enumerate(given_sequences(sequences)):
        kept = given.residues[: config.truncation_seq_length]
        encoded = alphabet.encode(kept)
        yield EncodedSequence(
            identifier=given.identifier,
            index=index,
            residues=kept,
            tokens=encoded.tokens,
            num_cut=len(given.residues) - len(kept),
            substitutions=dict(encoded.substitutions),
            source=given.source,
        )


def _warning_of_nucleotides(sequences: Iterable[EncodedSequence]) -> Iterator[EncodedSequence]:
    """Yield the sequences, and warn of the first that looks like nucleotides and of how many did."""
    count = 0
    for sequence in sequences:
        if looks_like_nucleotides(sequence.residues):
            count += 1
            if count == 1:
                place = f"{sequence.source} ('{sequence.identifier}')"
                warnings.warn(f"{place}: {nucleotide_warning(1)}", stacklevel=2)
        yield sequence
    if count > 1:
        warnings.warn(nucleotide_warning(count), stacklevel=2)


class Embedder:
    """Runs a model on batches of whole proteins.

    Attributes:
        layers: numbers of the layers, none of them negative, in the order asked for.

    Raises:
        ConfigError: if a layer does not exist or the model cannot give what is asked.
    """

    def __init__(self, pretrained: TrainedModel, config: EmbeddingConfig) -> None:
        self.pretrained = pretrained
        self.config = config
        self.layers = _resolve_layers(config.repr_layers, pretrained.num_layers)
        # a model of joint context has never seen <cls>: its embedding is as drawn
        self.has_bos = pretrained.context != "joint"
        if "bos" in config.include and not self.has_bos:
            raise ConfigError(
                "bos needs a model trained with <cls>, but this one was trained with packing.context = 'joint', "
                "which has none; use mean or per_tok"
            )

    def batches(self, sequences: Iterable[EncodedSequence]) -> Iterator[list[EncodedSequence]]:
        """Yield the sequences in batches of the token budget; a longer protein is a batch of its own."""
        return in_token_batches(sequences, self._num_tokens, toks_per_batch=self.config.toks_per_batch)

    def embed(self, batch: Sequence[EncodedSequence]) -> list[Outcome]:
        """Return what became of each sequence of a batch, in order.

        A batch that does not fit into memory is run again one sequence at a time.
        """
        runnable = [sequence for sequence in batch if len(sequence.tokens)]
        outcomes = {outcome.index: outcome for outcome in self._embed_or_split(runnable)}
        return [outcomes.get(sequence.index) or _failed_without_residues(sequence) for sequence in batch]

    def _num_tokens(self, sequence: EncodedSequence) -> int:
        return len(sequence.tokens) + 1 + self.has_bos

    def _embed_or_split(self, batch: Sequence[EncodedSequence]) -> list[Outcome]:
        if not batch:
            return []
        try:
            return self._embed_together(batch)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else "no memory left"
        if len(batch) > 1:
            return [outcome for sequence in batch for outcome in self._embed_or_split([sequence])]
        only = batch[0]
        message = f"{only.source}: '{only.identifier}' of {len(only.tokens):,} residues does not fit into memory"
        return [FailedSequence(only.identifier, only.index, len(only.tokens), UnavailableError(f"{message}: {reason}"))]

    # not inference_mode: random features drawn under it could not be used in training afterwards
    @torch.no_grad()
    def _embed_together(self, batch: Sequence[EncodedSequence]) -> list[Outcome]:
        row = _pack(batch, has_bos=self.has_bos)
        device = self.pretrained.device
        reader = _LayerReader(row.residue_spans, self.layers, self.config)
        self.pretrained.model.encode(
            row.tokens_BL.to(device),
            positions_BL=row.positions_BL.to(device),
            cu_seqlens=row.cu_seqlens.to(device),
            observer=reader,
        )
        return [self._outcome(sequence, reader, place) for place, sequence in enumerate(batch)]

    def _outcome(self, sequence: EncodedSequence, reader: _LayerReader, place: int) -> Outcome:
        length, found = len(sequence.tokens), reader.found[place]
        for kind, arrays in found.items():
            for layer, array in arrays.items():
                if not numpy.isfinite(array).all():
                    name = f"{sequence.source}: {kind} of layer {layer} of '{sequence.identifier}' is not finite"
                    reason = f" in {self.config.dtype}; use a wider dtype"
                    if not reader.is_finite(place, layer, kind):
                        reason = (
                            f", although every weight is: the model computes values beyond {reader.computed_in}; "
                            "load it with a wider dtype"
                        )
                    return FailedSequence(sequence.identifier, sequence.index, length, OutputError(name + reason))
        return SequenceEmbedding(
            identifier=sequence.identifier,
            index=sequence.index,
            length=length,
            num_cut=sequence.num_cut,
            substitutions=sequence.substitutions,
            **found,
        )


@dataclass(frozen=True)
class _PackedRow:
    tokens_BL: Tensor
    positions_BL: Tensor
    cu_seqlens: Tensor
    residue_spans: list[slice]


def _pack(batch: Sequence[EncodedSequence], *, has_bos: bool) -> _PackedRow:
    """Put the sequences one behind the other in a single row, (1, T)."""
    bos = numpy.full(int(has_bos), alphabet.CLS, dtype=numpy.uint8)
    eos = numpy.full(1, alphabet.EOS, dtype=numpy.uint8)
    segments = [numpy.concatenate([bos, sequence.tokens, eos]) for sequence in batch]
    bounds = numpy.cumsum([0, *(len(segment) for segment in segments)])
    positions = numpy.concatenate([numpy.arange(len(segment)) for segment in segments])
    return _PackedRow(
        tokens_BL=torch.from_numpy(numpy.concatenate(segments).astype(numpy.int64))[None],
        positions_BL=torch.from_numpy(positions)[None],
        cu_seqlens=torch.from_numpy(bounds.astype(numpy.int32)),
        residue_spans=[slice(start + has_bos, end - 1) for start, end in pairwise(bounds.tolist())],
    )


class _LayerReader:
    """An observer that takes what is asked for from each layer as it passes."""

    def __init__(self, residue_spans: Sequence[slice], layers: Sequence[int], config: EmbeddingConfig) -> None:
        self._spans = residue_spans
        self._layers = layers
        self._config = config
        self.found: list[dict[Kind, LayerArrays]] = [{kind: {} for kind in config.include} for _ in residue_spans]
        self.computed_in = ""
        self._is_finite: dict[int, Tensor] = {}

    def is_finite(self, place: int, layer: int, kind: Kind) -> bool:
        """Return whether the hidden states that a kind is made of are finite in the dtype they were computed in."""
        span = self._spans[place]
        return bool(self._is_finite[layer][span.start - 1 if kind == "bos" else span].all())

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        """Keep the asked kinds of a layer that is asked for."""
        if layer not in self._layers:
            return
        self.computed_in = str(hidden_BLD.dtype).removeprefix("torch.")
        self._is_finite[layer] = hidden_BLD[0].isfinite().all(-1)
        for kind in self._config.include:
            for found, array in zip(self.found, self._arrays(kind, hidden_BLD[0]), strict=True):
                # copy: a view would keep the whole batch alive for as long as one protein is
                found[kind][layer] = array.copy()

    def attention(
        self, layer: int, inputs: tuple[Tensor, Tensor, Tensor], out_BLHK: Tensor, visibility: Visibility
    ) -> None:
        """Look away: embeddings do not need the mechanism."""

    def _arrays(self, kind: Kind, hidden_TD: Tensor) -> Iterable[NDArray[numpy.floating]]:
        """Return the array of each protein, with one transfer from the device."""
        match kind:
            case "per_tok":
                rows = self._to_numpy(hidden_TD)
                return [rows[span] for span in self._spans]
            case "bos":
                return self._to_numpy(hidden_TD[[span.start - 1 for span in self._spans]])
            case "mean":
                # sum half precision in float32: a sum of float16 overflows at 65,504
                dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
                return self._to_numpy(torch.stack([hidden_TD[span].mean(dim=0, dtype=dtype) for span in self._spans]))

    def _to_numpy(self, values: Tensor) -> NDArray[numpy.floating]:
        array: NDArray[numpy.floating] = values.to(getattr(torch, self._config.dtype)).cpu().numpy()
        return array


def _resolve_layers(asked: Sequence[int], num_layers: int) -> tuple[int, ...]:
    for layer in asked:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"layer {layer} does not exist; expected 0 (embedding) to {num_layers} (last), or -1 to "
                f"{-num_layers - 1} from the end"
            )
    return tuple(dict.fromkeys(layer % (num_layers + 1) for layer in asked))


def _failed_without_residues(sequence: EncodedSequence) -> FailedSequence:
    error = FastaError(f"{sequence.source}: '{sequence.identifier}' has no residues; nothing can be embedded")
    return FailedSequence(sequence.identifier, sequence.index, 0, error)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the CPU allocator raises a plain RuntimeError
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
