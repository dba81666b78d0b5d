"""LSH attention: exact softmax over keys that hash like the query."""

from proteinlm.ops.lsh_attention.chunks import Chunking
from proteinlm.ops.lsh_attention.eager import lsh_attention
from proteinlm.ops.lsh_attention.hashing import bucket_factors, hash_buckets, rotations
from proteinlm.ops.lsh_attention.maps import SparseRows, lsh_map, lsh_sparse_map

__all__ = [
    "Chunking",
    "SparseRows",
    "bucket_factors",
    "hash_buckets",
    "lsh_attention",
    "lsh_map",
    "lsh_sparse_map",
    "rotations",
]
