"""A trained model, ready to be run on somebody's sequences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from proteinlm.attention import MECHANISMS, AttentionConfig
from proteinlm.config import assign, override, parse, to_table
from proteinlm.errors import CheckpointError, ConfigError, UnavailableError
from proteinlm.model.checkpoint import Checkpoint, listed_not_finite, load_checkpoint, not_finite
from proteinlm.model.masked_lm import MaskedLM
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.alphabet import alphabet_digest

if TYPE_CHECKING:
    from proteinlm.inference.embeddings import EmbeddingConfig, SequenceEmbedding
    from proteinlm.inference.given_sequences import SequenceLike

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class PretrainedModel:
    """A model in evaluation mode and the recipe it was trained with.

    Attributes:
        model: in evaluation mode; its random features are those of ``step``.
        recipe: the resolved recipe of the run, as a table.
        step: optimiser steps taken.
        path: the checkpoint folder.
        metadata: versions, digests and counts saved with the weights.
    """

    model: MaskedLM
    recipe: dict[str, Any]
    step: int
    path: Path
    metadata: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def num_layers(self) -> int:
        """Blocks of the trunk; hidden states are numbered 0 (embedding) to this (after the final norm)."""
        return self.model.config.num_layers

    @property
    def context(self) -> str:
        """How proteins shared a window in training: "isolated" or "joint"."""
        return str(self.recipe.get("packing", {}).get("context", "isolated"))

    @property
    def window_length(self) -> int | None:
        """Positions of a training window; None if the recipe does not say."""
        length = self.recipe.get("packing", {}).get("window_length")
        return None if length is None else int(length)

    def with_attention(self, assignments: Sequence[str]) -> PretrainedModel:
        """Return the same weights, shared in memory, with settings of their attention changed.

        Args:
            assignments: such as ``kind=softmax`` or, as in a recipe, ``model.attention.kind=softmax``; none changes
                nothing.

        Raises:
            ConfigError: if there is no such setting, or the weights cannot have this attention.

        >>> exact = proteinlm.load("runs/first").with_attention(["kind=softmax"])
        """
        if not assignments:
            return self
        chosen = chosen_attention(self.model.config.attention, assignments)
        return dataclasses.replace(self, model=self.model.with_attention(chosen))

    def embed(
        self,
        sequences: Iterable[SequenceLike],
        config: EmbeddingConfig | None = None,
        *,
        progress: Progress = SILENT,
    ) -> Iterator[SequenceEmbedding]:
        """Yield the embedding of each sequence, in the order given.

        Warns of sequences that look like nucleotides.

        Args:
            sequences: each a str of residues, a tuple (identifier, residues), or a record of ``read_fasta``.
            config: what to embed; the mean over residues of the last layer if None.
            progress: is told the residues done.

        Raises:
            ConfigError: if a layer does not exist or the model cannot give what is asked.
            FastaError: if something given is no sequence, holds what the command line refuses, or has no residues.
            UnavailableError: if a sequence needs more memory than there is.

        >>> model = proteinlm.load("runs/first")
        >>> for embedding in model.embed([("insulin", "MALWMRLLPLLALLALWGPDPAAA")]):
        ...     print(embedding.identifier, embedding.mean[model.num_layers].shape)
        insulin (128,)
        """
        from proteinlm.inference.embeddings import EmbeddingConfig, embed_records

        return embed_records(self, sequences, config or EmbeddingConfig(), progress=progress)


def load(
    path: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> PretrainedModel:
    """Load a checkpoint folder, or the newest checkpoint of a run folder, in evaluation mode.

    Args:
        path: the folder.
        device: where to run, as torch names it; "auto" takes the first GPU, or the CPU where there is none.
        dtype: of the weights, such as "float16"; as they were saved if None.

    Raises:
        CheckpointError: if there is no checkpoint, its parts are damaged or do not fit together, or a weight is
            not finite.
        ConfigError: if ``device`` or ``dtype`` is no such thing, or a weight is beyond what ``dtype`` holds.
        UnavailableError: if the device is not on this machine.

    >>> import proteinlm
    >>> model = proteinlm.load("runs/first")
    >>> model.step
    1000
    """
    target, kind = device_named(device), _dtype(dtype)
    checkpoint = load_checkpoint(Path(path))
    _check_alphabet(checkpoint)
    model = checkpoint.model.to(device=target, dtype=kind).eval()
    if kind is not None and (found := not_finite(model.state_dict())):
        name = str(kind).removeprefix("torch.")
        raise ConfigError(f"{checkpoint.path}: in {name} {listed_not_finite(found)}; expected a wider dtype")
    return PretrainedModel(model, checkpoint.recipe, checkpoint.step, checkpoint.path, checkpoint.metadata)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionChoice:
    """A mechanism to run given weights with."""

    attention: AttentionConfig


def chosen_attention(own: AttentionConfig, assignments: Sequence[str]) -> AttentionConfig:
    """Return the attention ``own`` of a model with settings changed, as ``config.assign`` does in a recipe.

    Raises:
        ConfigError: if there is no such setting.
    """
    table, names = to_table(own), [name.strip().removeprefix("model.attention.") for name in assignments]
    kind = MECHANISMS.get(str(override(table, names)["kind"]))
    if kind is not None and "shared_query_key" in (field.name for field in dataclasses.fields(kind[0])):
        # a mechanism that has no such setting reads keys of their own, and the weights stay what they are
        table = {"shared_query_key": False} | table
    chosen = assign(AttentionChoice, {"attention": table}, [f"attention.{name}" for name in names])
    return parse(AttentionChoice, chosen, source="--set").attention


def device_named(name: str | torch.device) -> torch.device:
    """Return a torch device by name; "auto" is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: if there is no such kind of device.
        UnavailableError: if this machine has none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is no device; expected 'auto', 'cpu' or 'cuda', for example") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnavailableError(f"device '{name}' is not on this machine; use 'cpu'") from error
    return device


def _check_alphabet(checkpoint: Checkpoint) -> None:
    written = checkpoint.metadata.get("alphabet", alphabet_digest())
    if written != alphabet_digest():
        raise CheckpointError(
            f"{checkpoint.path}: was trained with alphabet {written}, but this proteinlm has {alphabet_digest()}; "
            "use the version that trained it"
        )


def _dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise ConfigError(f"dtype '{name}' is none of weights; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]
