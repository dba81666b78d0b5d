"""Manifests: what a corpus release consists of, and whether the files at hand are that release."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proteinlm import config
from proteinlm.corpus.layout import CorpusIndex, SplitEntry
from proteinlm.corpus.splitting import SplittingConfig
from proteinlm.errors import ConfigError, ManifestError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Approximation:
    """What was once published or counted of a file that changes with every release."""

    as_of: str  # the release or the day
    source: str
    records: int | None = None
    residues: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestFile:
    """One file of sequences; ``path`` is relative to the manifest.

    A file with a ``url`` can be downloaded, and may leave its digest to the publisher's ``checksums``.
    """

    path: str
    url: str = ""
    checksums: str = ""  # address of a metalink
    sha256: str = ""
    bytes: int | None = None
    records: int | None = None
    residues: int | None = None
    approximate: Approximation | None = None
    purpose: str = ""

    def __post_init__(self) -> None:
        _check_path(self.path)
        if self.sha256:
            _check_sha256(self.sha256)
        elif not self.checksums:
            raise ValueError(f"{self.path}: nothing says what it must be; expected sha256, or checksums")
        for address in (self.url, self.checksums):
            if address and not re.match("https?://[^/]", address):
                raise ValueError(f"{self.path}: '{address}' is no address; expected https://…")
        if self.checksums and not self.url:
            raise ValueError(f"{self.path}: has checksums but no url")
        missing = [name for name in ("bytes", "records", "residues") if getattr(self, name) is None]
        if missing and not self.url:
            raise ValueError(f"{self.path}: {missing[0]} is required of a file without url")


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestClusters:
    """The table of clusters that belongs to the files."""

    path: str
    sha256: str
    bytes: int
    clusters: int
    method: str

    def __post_init__(self) -> None:
        _check_sha256(self.sha256)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCounts:
    """What a split holds when the corpus is built with the settings of the manifest."""

    sequences: int
    residues: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A corpus release: what data_manifests/README.md says of every field."""

    name: str
    release: str
    description: str
    licence: str
    licence_url: str
    credit: str
    citation: str
    header_grammar: str
    files: tuple[ManifestFile, ...]
    clusters: ManifestClusters | None = None
    splitting: SplittingConfig = field(default_factory=SplittingConfig)
    expected: Mapping[str, SplitCounts] = field(default_factory=dict)
    other_files: tuple[ManifestFile, ...] = ()

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("names no files; expected at least one [[files]]")

    @property
    def provenance(self) -> dict[str, str]:
        """What a corpus remembers of its release."""
        return {
            "name": self.name,
            "release": self.release,
            "licence": self.licence,
            "credit": self.credit,
            "citation": self.citation,
        }


# fields that no recipe has; one with a faulty [[files]] is still meant as a manifest
_TELLING = {
    "release",
    "licence",
    "licence_url",
    "credit",
    "citation",
    "header_grammar",
    "files",
    "clusters",
    "expected",
}


def is_manifest(table: Mapping[str, Any]) -> bool:
    """Say whether the table of a TOML file is meant as a manifest, whole or not."""
    return not _TELLING.isdisjoint(table)


def _check_path(path: str) -> None:
    if not path or Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError(f"path '{path}' leads away from the manifest; expected a file beside or below it")


def _check_sha256(text: str) -> None:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"sha256 '{text}' is not 64 hex digits in lower case")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: lists every field that is missing, unknown or wrong.
    """
    try:
        return config.parse(Manifest, config.read_table(path), source=str(path))
    except ConfigError as error:
        raise ManifestError(str(error)) from error


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest that ``read_manifest`` reads as the same."""
    path.write_text("\n".join(_toml_lines(config.to_table(manifest))) + "\n", encoding="utf-8")


def _toml_lines(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the lines of a table: its values, then its tables, then its lists of tables."""
    for name, value in table.items():
        if isinstance(value, str | int | float) or _is_texts(value):
            # a JSON string is a TOML string, but for a character that TOML wants escaped
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from ("", f"[{prefix}{name}]", *_toml_lines(value, f"{prefix}{name}."))
        for item in value if isinstance(value, list) and not _is_texts(value) else []:
            yield from ("", f"[[{prefix}{name}]]", *_toml_lines(item, f"{prefix}{name}."))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Refuse files that are missing or of another size, before anything is read.

    Raises:
        ManifestError: names the file, the size found and the size expected.
    """
    entries: list[ManifestFile | ManifestClusters] = [*manifest.files]
    entries += [manifest.clusters] if manifest.clusters else []
    for entry in entries:
        file = path.parent / entry.path
        if not file.is_file():
            raise ManifestError(f"{file}: no such file, though {path} names it")
        if entry.bytes is not None and (size := file.stat().st_size) != entry.bytes:
            raise ManifestError(f"{file}: has {size:,} bytes where {path} says {entry.bytes:,}")


def check_sources(path: Path, manifest: Manifest, index: CorpusIndex) -> None:
    """Refuse files whose content is not what the manifest says.

    Raises:
        ManifestError: names the file, what was found and what was expected.
    """
    for file, source in zip(manifest.files, index.sources, strict=True):
        _expect(path, file.path, "sha256", source.sha256, file.sha256)
        _expect(path, file.path, "records", source.num_records, file.records)
        _expect(path, file.path, "residues", source.num_residues, file.residues)
    if manifest.clusters is not None and index.clusters is not None:
        _expect(path, manifest.clusters.path, "sha256", index.clusters.sha256, manifest.clusters.sha256)
        _expect(path, manifest.clusters.path, "clusters", index.clusters.num_clusters, manifest.clusters.clusters)


def check_splits(path: Path, manifest: Manifest, splits: Mapping[str, SplitEntry]) -> None:
    """Refuse splits that are not those that the manifest expects of its own settings.

    Raises:
        ManifestError: names the split, what was found and what was expected.
    """
    for name, expected in manifest.expected.items():
        if name not in splits:
            raise ManifestError(f"{path}: expects a split '{name}'; there are {', '.join(splits)}")
        _expect(path, name, "sequences", splits[name].num_sequences, expected.sequences)
        _expect(path, name, "residues", splits[name].num_residues, expected.residues)


def _expect(path: Path, subject: str, what: str, found: int | str, expected: int | str | None) -> None:
    # what a manifest leaves open is whatever it is
    if expected not in {None, found, ""}:
        shown = [f"{value:,}" if isinstance(value, int) else value for value in (found, expected)]
        raise ManifestError(f"{subject}: {what} is {shown[0]} where {path} says {shown[1]}")
