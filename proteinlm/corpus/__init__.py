"""The room corpus: protein sequences in shards, with splits that do not leak."""

from proteinlm.corpus.export import ExportReport, export_fasta
from proteinlm.corpus.ingestion import IngestionConfig, IngestionReport, ingest, ingest_manifest
from proteinlm.corpus.layout import TRAIN, VALIDATION_IID, VALIDATION_OOD
from proteinlm.corpus.manifest import Manifest, is_manifest, read_manifest
from proteinlm.corpus.shard_reader import Corpus, SequenceSet, SplitSummary, open_corpus
from proteinlm.corpus.splitting import SplittingConfig
from proteinlm.corpus.summary import summarise_corpus, summarise_fasta
from proteinlm.corpus.verification import VerificationReport, verify_corpus

__all__ = [
    "TRAIN",
    "VALIDATION_IID",
    "VALIDATION_OOD",
    "Corpus",
    "ExportReport",
    "IngestionConfig",
    "IngestionReport",
    "Manifest",
    "SequenceSet",
    "SplitSummary",
    "SplittingConfig",
    "VerificationReport",
    "export_fasta",
    "ingest",
    "ingest_manifest",
    "is_manifest",
    "open_corpus",
    "read_manifest",
    "summarise_corpus",
    "summarise_fasta",
    "verify_corpus",
]
