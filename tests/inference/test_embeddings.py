"""Each protein's embedding is its own: whole, in order, and untouched by its neighbours."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

import proteinlm
from proteinlm.errors import ConfigError, FastaError, OutputError
from proteinlm.inference.embeddings import EmbeddingConfig, SequenceEmbedding
from proteinlm.inference.pretrained import PretrainedModel
from proteinlm.sequence import alphabet
from proteinlm.sequence.fasta import FastaRecord, read_fasta

EVERYTHING = EmbeddingConfig(include=("mean", "per_tok", "bos"), repr_layers=(0, 1, 2))
EXACT = dataclasses.replace(EVERYTHING, dtype="float64")


def arrays(embedding: SequenceEmbedding) -> list[numpy.ndarray]:
    parts = (embedding.mean, embedding.per_tok, embedding.bos)
    return [array for part in parts for array in part.values()]


def largest_difference(one: SequenceEmbedding, other: SequenceEmbedding) -> float:
    return max(float(abs(a - b).max()) for a, b in zip(arrays(one), arrays(other), strict=True))


def test_order_of_the_input_is_kept(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    config = EmbeddingConfig(toks_per_batch=700)
    assert [e.identifier for e in pretrained.embed(proteins, config)] == [p.identifier for p in proteins]


def test_neighbours_in_the_batch_change_nothing_in_float64(checkpoint_of_each: Path, proteins: list[FastaRecord]):
    model = proteinlm.load(checkpoint_of_each, dtype="float64")
    together = list(model.embed(proteins, dataclasses.replace(EXACT, toks_per_batch=100_000)))
    alone = list(model.embed(proteins, dataclasses.replace(EXACT, toks_per_batch=1)))
    assert max(map(largest_difference, together, alone)) <= 1e-10


def test_neighbours_in_the_batch_change_roundings_only_in_float32(
    checkpoint_of_each: Path, proteins: list[FastaRecord]
):
    model = proteinlm.load(checkpoint_of_each)
    together = list(model.embed(proteins, dataclasses.replace(EVERYTHING, toks_per_batch=100_000)))
    alone = list(model.embed(proteins, dataclasses.replace(EVERYTHING, toks_per_batch=1)))
    # two orders of summation differ by about sqrt(terms) roundings a sum: per layer 5 products of
    # width 32 to 48 and sums over 400 keys and 16 features, each at most doubled by the next norm
    num_roundings = 2 * (5 * 48**0.5 + 400**0.5 + 16**0.5) * 2**2
    scale = max(float(abs(array).max()) for embedding in alone for array in arrays(embedding))
    assert max(map(largest_difference, together, alone)) <= num_roundings * 2**-24 * scale


def test_a_far_residue_changes_the_embedding_of_every_other(checkpoint_of_each: Path):
    model = proteinlm.load(checkpoint_of_each, dtype="float64")
    one, other = model.embed(["M" + "ALWKRLP" * 20 + "A", "M" + "ALWKRLP" * 20 + "W"], EXACT)
    assert (abs(one.per_tok[2] - other.per_tok[2]).max(axis=1) > 1e-6).all()


def test_reversing_the_input_reverses_the_embeddings(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    config = EmbeddingConfig(toks_per_batch=1)
    forth = [e.mean[2] for e in pretrained.embed(proteins, config)]
    back = [e.mean[2] for e in pretrained.embed(proteins[::-1], config)]
    numpy.testing.assert_array_equal(forth, back[::-1])


def test_there_is_one_row_for_each_residue(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    config = EmbeddingConfig(include=("per_tok",))
    assert [len(e.per_tok[2]) for e in pretrained.embed(proteins, config)] == [len(p.residues) for p in proteins]


@pytest.mark.parametrize("residues", ["ACDUOBZX", "acdefghik", "MKJJ*LV"], ids=["rare", "lower", "J*"])
def test_unusual_residues_have_one_row_each(pretrained: PretrainedModel, residues: str):
    (embedding,) = pretrained.embed([residues], EmbeddingConfig(include=("per_tok",)))
    assert embedding.per_tok[2].shape == (len(residues), 32)


def test_layer_0_is_the_token_embedding_of_each_residue(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    (embedding,) = pretrained.embed(proteins[:1], EmbeddingConfig(include=("per_tok",), repr_layers=(0,)))
    weights = pretrained.model.encoder.embedding.weight.detach().numpy()
    numpy.testing.assert_array_equal(embedding.per_tok[0], weights[alphabet.encode(proteins[0].residues).tokens])


def test_last_layer_is_what_encode_returns(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    residues = alphabet.encode(proteins[0].residues).tokens.astype(numpy.int64)
    tokens_BL = torch.tensor([[alphabet.CLS, *residues, alphabet.EOS]])
    with torch.inference_mode():
        hidden_BLD = pretrained.model.encode(tokens_BL)
    (embedding,) = pretrained.embed(proteins[:1], EVERYTHING)
    numpy.testing.assert_allclose(embedding.per_tok[2], hidden_BLD[0, 1:-1], rtol=0, atol=1e-5)
    numpy.testing.assert_allclose(embedding.bos[2], hidden_BLD[0, 0], rtol=0, atol=1e-5)


def test_mean_leaves_special_tokens_out(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    for embedding in pretrained.embed(proteins, EXACT):
        numpy.testing.assert_allclose(embedding.mean[1], embedding.per_tok[1].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_negative_layers_count_from_the_end(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    (embedding,) = pretrained.embed(proteins[:1], EmbeddingConfig(repr_layers=(-1, 0, -2, 2)))
    assert sorted(embedding.mean) == [0, 1, 2]


def test_layer_that_does_not_exist_is_refused(pretrained: PretrainedModel):
    with pytest.raises(ConfigError, match=r"layer 3 does not exist; expected 0 \(embedding\) to 2"):
        pretrained.embed(["MKV"], EmbeddingConfig(repr_layers=(3,)))


def test_text_is_treated_like_a_record_of_a_file(pretrained: PretrainedModel, tmp_path: Path):
    path = tmp_path / "odd.fasta"
    path.write_text(">odd\nMK-T~ay*QJ**\n")
    ((from_file,), (from_text,)) = (
        list(pretrained.embed(sequences)) for sequences in (read_fasta([path]), [("odd", "MK-T~ay*QJ**")])
    )
    assert from_text.length == from_file.length == 8
    assert (from_text.mean[2] == from_file.mean[2]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("median",)}, "found 'median'"),
        ({"include": ()}, "at least one kind"),
        ({"repr_layers": ()}, "at least one kind and one layer"),
        ({"toks_per_batch": 0}, "toks_per_batch is 0"),
        ({"truncation_seq_length": 0}, "truncation_seq_length is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_senseless_setting_is_a_config_error(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        EmbeddingConfig(**settings)


def test_bos_is_refused_where_training_had_no_start_token(make_checkpoint: Callable[..., Path]):
    model = proteinlm.load(make_checkpoint(context="joint"))
    with pytest.raises(ConfigError, match=r"packing\.context = 'joint'"):
        model.embed(["MKV"], EmbeddingConfig(include=("bos",)))


def test_model_of_joint_context_is_shown_no_start_token(make_checkpoint: Callable[..., Path]):
    model = proteinlm.load(make_checkpoint(context="joint"), dtype="float64")
    (embedding,) = model.embed(["MKVLA"], dataclasses.replace(EXACT, include=("per_tok",)))
    tokens_BL = torch.tensor([[*alphabet.encode(b"MKVLA").tokens, alphabet.EOS]], dtype=torch.int64)
    with torch.inference_mode():
        expected = model.model.encode(tokens_BL)[0, :-1]
    numpy.testing.assert_allclose(embedding.per_tok[2], expected, rtol=0, atol=1e-10)


def test_protein_beyond_budget_and_window_is_embedded_whole(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    residues = "".join(protein.residues.decode() for protein in proteins)
    (embedding,) = pretrained.embed([residues], EmbeddingConfig(include=("per_tok",), toks_per_batch=100))
    assert len(embedding.per_tok[2]) == len(residues) > 512


def test_truncation_is_counted(pretrained: PretrainedModel):
    embeddings = pretrained.embed(["MKVLAA", "MK"], EmbeddingConfig(truncation_seq_length=4))
    assert [(e.length, e.num_cut) for e in embeddings] == [(4, 2), (2, 0)]


def test_truncated_protein_is_embedded_as_its_beginning(pretrained: PretrainedModel):
    (cut,) = pretrained.embed(["MKVLAA"], EmbeddingConfig(truncation_seq_length=4))
    (beginning,) = pretrained.embed(["MKVL"])
    numpy.testing.assert_array_equal(cut.mean[2], beginning.mean[2])


def test_records_pairs_and_strings_give_the_same_embedding(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    protein = proteins[0]
    pair = (protein.identifier, protein.residues.decode())
    config = EmbeddingConfig(toks_per_batch=1)
    record, paired, string = pretrained.embed([protein, pair, pair[1]], config)
    assert record.identifier == paired.identifier
    numpy.testing.assert_array_equal(record.mean[2], paired.mean[2])
    numpy.testing.assert_array_equal(record.mean[2], string.mean[2])


def test_strings_without_identifier_are_named_by_their_place(pretrained: PretrainedModel):
    assert [e.identifier for e in pretrained.embed(["MKV", "MKL"])] == ["sequence_0", "sequence_1"]


def test_white_space_in_a_string_is_no_residue(pretrained: PretrainedModel):
    (embedding,) = pretrained.embed(["MKV LAA\n"])
    assert embedding.length == 6


def test_substitutions_are_counted(pretrained: PretrainedModel):
    (embedding,) = pretrained.embed(["MKJJv"])
    assert dict(embedding.substitutions) == {"J": 2, "lower case": 1}


def test_sequence_without_residues_is_named(pretrained: PretrainedModel):
    with pytest.raises(FastaError, match="sequence 1: 'b' has no residues"):
        list(pretrained.embed([("a", "MKV"), ("b", "")]))


def test_float16_that_overflows_is_refused_by_name(make_checkpoint: Callable[..., Path]):
    model = proteinlm.load(make_checkpoint(weight_scale=1e5))
    with pytest.raises(OutputError, match="of 'a' is not finite in float16; use a wider dtype"):
        list(model.embed([("a", "MKV")], EmbeddingConfig(dtype="float16")))


def test_states_beyond_the_dtype_of_the_weights_are_not_blamed_on_the_stored_one(
    make_checkpoint: Callable[..., Path],
):
    model = proteinlm.load(make_checkpoint())
    with torch.no_grad():
        model.model.encoder.blocks[0].feed_forward.outer.weight.fill_(3e38)
    message = "mean of layer 2 of 'a' is not finite, although every weight is: the model computes values beyond float32"
    with pytest.raises(OutputError, match=message) as refused:
        list(model.embed([("a", "MKV")], EmbeddingConfig(dtype="float32")))
    assert "use a wider dtype" not in str(refused.value)


def test_mean_of_half_precision_weights_does_not_overflow(make_checkpoint: Callable[..., Path]):
    model = proteinlm.load(make_checkpoint(weight_scale=3.0), dtype="float16")
    (embedding,) = model.embed(["W" * 30_000], EmbeddingConfig(repr_layers=(0,)))
    numpy.testing.assert_allclose(embedding.mean[0], model.model.encoder.embedding.weight[22].detach(), rtol=1e-3)


def test_embedding_keeps_no_memory_of_its_batch(pretrained: PretrainedModel, proteins: list[FastaRecord]):
    embedding = next(pretrained.embed(proteins, EVERYTHING))
    assert sum(array.nbytes for array in arrays(embedding)) == sum(
        (array if array.base is None else array.base).nbytes for array in arrays(embedding)
    )


def test_model_can_be_trained_after_it_has_embedded(checkpoint_of_each: Path):
    model = proteinlm.load(checkpoint_of_each)
    list(model.embed(["MKVLA"]))
    model.model(torch.tensor([[0, 20, 15, 7, 2]])).sum().backward()
    assert all(weight.grad is not None for weight in model.model.parameters())


OUT_OF_MEMORY = """
import resource, sys
import torch
torch.set_num_threads(1)
import proteinlm
from proteinlm.inference.embeddings import Embedder, EmbeddingConfig, encode_sequences
config = EmbeddingConfig(toks_per_batch=10**9)
embedder = Embedder(proteinlm.load(sys.argv[1]), config)
sequences = list(encode_sequences([("a", "MKV"), ("giant", "M" * 8_000_000), ("b", "MKL")], config))
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
# the token embedding of the giant alone takes 8e6 * 32 * 4 bytes = 1 GB
resource.setrlimit(resource.RLIMIT_AS, (in_use + 500 * 2**20, resource.RLIM_INFINITY))
for outcome in embedder.embed(sequences):
    print(outcome.identifier, type(outcome).__name__, type(getattr(outcome, "error", None)).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of the address space")
def test_protein_that_does_not_fit_into_memory_fails_alone(checkpoint: Path, project_root: Path):
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=project_root, check=False)
    assert done.stdout.splitlines() == [
        "a SequenceEmbedding NoneType",
        "giant FailedSequence UnavailableError",
        "b SequenceEmbedding NoneType",
    ], done.stderr
