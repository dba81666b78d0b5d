"""The shape of report.json, version 1; docs/comparing.md explains every field.

Figures that do not exist (an overlap where no entry is eligible, one that is not finite) are null.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proteinlm import config
from proteinlm.errors import ConfigError

SCHEMA_VERSION = 1

Numbers = list[Any]
"""Nested lists of numbers, as deep as the letters of the field's axes are many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsTable:
    """Settings of the comparison."""

    num_random_features: list[int]
    num_draws: int
    max_sequences: int | None
    max_length: int
    separation: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodTable:
    """Which mechanisms were compared."""

    trained_attention: dict[str, Any]
    feature_map: str
    projection: str
    head_dim: int
    shown_features: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CountsTable:
    """What became of the records that were read."""

    num_read: int
    num_empty: int
    num_not_drawn: int
    num_too_long: int
    substitutions: dict[str, int]
    num_nucleotides: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProteinTable:
    """One compared protein; figures at ``shown_features``."""

    identifier: str
    num_residues: int
    output_error: float | None
    uniform_output_error: float | None
    top_overlap: float | None
    hidden_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryTable:
    """One kind of attention, means over heads, proteins and draws."""

    name: str
    num_features: int | None
    total_variation: float | None
    output_error: float | None
    top_overlap: float | None
    hidden_error: float | None
    perplexity: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class VerdictTable:
    """The answer in words and the numbers it rests on."""

    headline: str
    sentences: list[str]
    beats_uniform_from: int | None
    better_heads: list[float | None]
    entropy_share: float | None
    output_error_slope: float | None
    total_variation_slope: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTable:
    """One head, means over proteins and draws; lists go by number of features."""

    layer: int
    head: int
    entropy: float | None
    query_norm: float | None
    key_norm: float | None
    sum_norm: float | None
    kernel_deviation: float | None
    uniform_total_variation: float | None
    uniform_output_error: float | None
    identity_output_error: float | None
    total_variation: list[float | None]
    output_error: list[float | None]
    top_overlap: list[float | None]
    output_error_slope: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MapsTable:
    """Every measured figure of the maps; the letters of a name are its axes, outermost first."""

    total_variation_PNHFR: Numbers
    output_error_PNHFR: Numbers
    top_overlap_PNHFR: Numbers
    uniform_total_variation_PNH: Numbers
    uniform_output_error_PNH: Numbers
    identity_output_error_PNH: Numbers
    chance_overlap_P: Numbers
    entropy_PNH: Numbers
    uniform_entropy_P: Numbers
    query_norm_PNH: Numbers
    key_norm_PNH: Numbers
    sum_norm_PNH: Numbers
    kernel_deviation_PNH: Numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationTable:
    """Masked residues predicted through one kind of attention."""

    kind: str
    num_features: int | None
    draw: int | None
    loss: float | None
    perplexity: float | None
    accuracy: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrunkTable:
    """The whole trunk against exact softmax; the letters of a name are its axes."""

    hidden_error_QEFR: Numbers
    uniform_hidden_error_QE: Numbers
    identity_hidden_error_QE: Numbers
    evaluations: list[EvaluationTable]
    num_targets: int
    unigram_source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleTable:
    """A head whose maps are drawn."""

    identifier: str
    num_residues: int
    layer: int
    head: int
    reason: str
    num_features: int
    output_error: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportTable:
    """All of report.json."""

    schema_version: int
    settings: SettingsTable
    provenance: dict[str, Any]
    method: MethodTable
    counts: CountsTable
    verdict: VerdictTable
    summary: list[SummaryTable]
    proteins: list[ProteinTable]
    heads: list[HeadTable]
    maps: MapsTable
    trunk: TrunkTable
    examples: list[ExampleTable]
    history: list[dict[str, Any]]


def read_report(path: Path) -> ReportTable:
    """Read a report.json and check its shape.

    Raises:
        ConfigError: if the file is missing, is no JSON or is not of this schema.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON ({error})") from error
    version = table.get("schema_version") if isinstance(table, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{path}: has schema version {version}; this proteinlm reads {SCHEMA_VERSION}")
    return config.parse(ReportTable, table, source=str(path))
