"""The room corpus: protein sequences in shards, with splits that do not leak."""

from proteinlm.corpus.download import DownloadReport, download
from proteinlm.corpus.export import ExportReport, export_fasta
from proteinlm.corpus.held_out import HeldOutFiles
from proteinlm.corpus.ingestion import (
    MEMORY_BYTES,
    Effort,
    IngestionConfig,
    IngestionReport,
    ingest,
    ingest_manifest,
)
from proteinlm.corpus.ingestion_state import unfinished
from proteinlm.corpus.layout import TRAIN, VALIDATION_IID, VALIDATION_OOD
from proteinlm.corpus.manifest import Manifest, is_manifest, read_manifest
from proteinlm.corpus.shard_reader import Corpus, SequenceSet, SplitSummary, open_corpus
from proteinlm.corpus.splitting import SplittingConfig
from proteinlm.corpus.summary import summarise_corpus, summarise_fasta
from proteinlm.corpus.verification import VerificationReport, verify_corpus
from proteinlm.corpus.web_server import DownloadConfig
from proteinlm.shipped import find_manifest, shipped_manifests

__all__ = [
    "MEMORY_BYTES",
    "TRAIN",
    "VALIDATION_IID",
    "VALIDATION_OOD",
    "Corpus",
    "DownloadConfig",
    "DownloadReport",
    "Effort",
    "ExportReport",
    "HeldOutFiles",
    "IngestionConfig",
    "IngestionReport",
    "Manifest",
    "SequenceSet",
    "SplitSummary",
    "SplittingConfig",
    "VerificationReport",
    "download",
    "export_fasta",
    "find_manifest",
    "ingest",
    "ingest_manifest",
    "is_manifest",
    "open_corpus",
    "read_manifest",
    "shipped_manifests",
    "summarise_corpus",
    "summarise_fasta",
    "unfinished",
    "verify_corpus",
]
