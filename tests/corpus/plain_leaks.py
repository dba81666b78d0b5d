"""What validation shares with training, found with sets: what the check in little memory must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from proteinlm.corpus.layout import TRAIN, LeakEntry


@dataclass(slots=True)
class LeakCheck:
    """Watches what goes into which split, and counts what validation shares with training."""

    _train_sequences: set[bytes] = field(default_factory=set)
    _train_clusters: set[int] = field(default_factory=set)
    _validation: dict[str, list[tuple[bytes, int | None]]] = field(default_factory=dict)

    def watch(self, digest: bytes, cluster: int | None, split: str) -> None:
        """Remember a protein that has gone into ``split``."""
        if split != TRAIN:
            self._validation.setdefault(split, []).append((digest, cluster))
            return
        self._train_sequences.add(digest)
        if cluster is not None:
            self._train_clusters.add(cluster)

    def report(self, split: str) -> LeakEntry:
        """Return how many proteins of ``split`` have an equal, or a member of their cluster, in ``train``."""
        proteins = self._validation.get(split, [])
        return LeakEntry(
            equal_sequences=sum(digest in self._train_sequences for digest, _ in proteins),
            same_cluster=sum(cluster in self._train_clusters for _, cluster in proteins)
            if self._train_clusters
            else None,
        )
