"""What a comparison of a checkpoint finds."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re

import numpy as np
import pytest
import torch

from proteinlm.analysis.comparison import _stacked, choose_records, compare_checkpoint, sequences_digest
from proteinlm.analysis.report import write_report
from proteinlm.analysis.results import ComparisonConfig, by_features, by_head, mean, summary_rows
from proteinlm.analysis.schema import read_report
from proteinlm.analysis.trunks import protein_window
from proteinlm.analysis.verdict import head_table, protein_table, reach_verdict
from proteinlm.attention import FavorConfig, LshConfig, SoftmaxConfig
from proteinlm.errors import ConfigError, FastaError, PrecisionError
from proteinlm.inference.pretrained import load
from proteinlm.sequence.alphabet import encode
from proteinlm.sequence.fasta import FastaRecord
from tests.analysis import naive
from tests.analysis.conftest import HISTORY, SMALL, small_model


def record(identifier: str, residues: bytes = b"MKTAYIAKQRQISFVKSHFSRQ") -> FastaRecord:
    return FastaRecord(identifier, "", residues, "some.fasta", 1)


class Recorder:
    def __init__(self):
        self.layers = []

    def hidden(self, layer, hidden_BLD): ...

    def attention(self, layer, inputs, out_BLHK, visibility):
        self.layers.append(inputs)


def test_figures_of_a_head_are_those_of_whole_maps(report, run_folder, proteins):
    model = load(run_folder).model
    window = protein_window(encode(proteins[0].residues).tokens, "isolated", torch.device("cpu"))
    seen = Recorder()
    exact = model.with_attention(SoftmaxConfig())
    favor = model.with_attention(FavorConfig(num_random_features=64, redraw_interval=1))
    favor.set_step(1)
    with torch.no_grad():
        exact.encode(window.tokens_BL, observer=seen)
    q, k, v = (tensor.double() for tensor in seen.layers[1])
    exact_LL, favor_LL = (m.encoder.blocks[1].attention.attention_map(q, k)[0, 1].numpy() for m in (exact, favor))
    values = v[0, :, 1].numpy()
    place = (0, 1, 1, 1, 1)
    # the comparison runs in float32: rows of a map are good to about 1e-6 of their weights
    figures = report.maps
    found = figures.total_variation_PNHFR[place], figures.output_error_PNHFR[place], figures.entropy_PNH[0, 1, 1]
    expected = (
        naive.total_variation(exact_LL, favor_LL),
        naive.output_error(exact_LL, favor_LL, values),
        naive.entropy(exact_LL),
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_more_features_are_nearer_to_exact(report):
    for figures in (report.maps.total_variation_PNHFR, report.maps.output_error_PNHFR):
        few, many = by_features(figures)
        assert many < few


def test_error_falls_about_as_the_square_root_of_features(run_folder, proteins):
    settings = ComparisonConfig(num_random_features=(32, 128, 512), num_draws=4, max_length=120, max_sequences=None)
    model = load(run_folder).model
    assert model.config.max_temperature <= 1, "the law holds where |z|^2 is small"
    short = [record(p.identifier, p.residues[:100]) for p in proteins]
    verdict = reach_verdict(compare_checkpoint(short, run_folder, settings))
    assert verdict.output_error_slope == pytest.approx(-0.5, abs=0.12)


def test_draws_differ(report):
    errors = report.maps.output_error_PNHFR
    assert not np.any(errors[..., 0] == errors[..., 1])


def test_the_same_comparison_gives_the_same_numbers(report, run_folder, proteins):
    again = compare_checkpoint(proteins, run_folder, SMALL)
    assert np.array_equal(again.maps.output_error_PNHFR, report.maps.output_error_PNHFR)
    assert again.trunk.evaluations == report.trunk.evaluations


def test_long_proteins_leave_the_maps_and_are_counted(report):
    assert [protein.has_maps for protein in report.proteins] == [True, True, True, False]
    assert report.counts.num_too_long == 1
    assert len(report.maps.output_error_PNHFR) == 3


def test_long_proteins_stay_in_the_end_to_end_figures(report):
    assert len(report.trunk.hidden_error_QEFR) == 4
    expected = sum(max(1, round(0.15 * protein.num_residues)) for protein in report.proteins)
    assert abs(report.trunk.num_targets - expected) <= 4  # X is never a target


def test_embeddings_are_alike_and_later_layers_are_not(report):
    errors = report.trunk.hidden_error_QEFR
    assert np.all(errors[:, 0] == 0)
    assert np.all(errors[:, 1:] > 0)


def test_every_kind_of_attention_is_evaluated(report):
    kinds = [evaluation.kind for evaluation in report.trunk.evaluations]
    assert kinds.count("favor") == 4
    assert {"exact", "trained", "uniform", "identity", "unigram"} < set(kinds)


def test_summary_names_every_number_of_features_and_the_baselines(report):
    names = [row.name for row in summary_rows(report)]
    assert names == ["exact softmax", "FAVOR+ 8", "FAVOR+ 64", "uniform", "identity", "unigram"]


def test_shown_features_are_the_measured_ones_nearest_the_trained(report):
    assert report.trained_attention["num_random_features"] == 16
    assert report.shown_features == 8


def test_examples_are_the_best_the_median_and_the_worst_head(report):
    lengths = sorted((p.num_residues, place) for place, p in enumerate(report.proteins) if p.has_maps)
    place = lengths[1][1]
    errors = report.maps.output_error_PNHFR[place, :, :, 0].mean(-1)
    assert [example.reason for example in report.examples] == ["smallest", "median", "largest"]
    assert report.examples[0].output_error == errors.min()
    assert report.examples[2].output_error == errors.max()
    assert len(report.examples[0].exact_CC) == report.proteins[place].num_residues


def test_joint_windows_have_no_start_token():
    window = protein_window(encode(b"MKV").tokens, "joint", torch.device("cpu"))
    assert window.tokens_BL.shape == (1, 4)
    assert (window.first, window.last) == (0, 3)


def test_a_joint_checkpoint_is_compared(save_run, proteins, tmp_path):
    run = save_run(tmp_path / "run", context="joint")
    found = compare_checkpoint(proteins[:2], run, dataclasses.replace(SMALL, num_draws=1))
    assert found.provenance["context"] == "joint"
    assert found.trunk.num_targets > 0


def test_a_checkpoint_trained_with_exact_softmax_is_compared(save_run, proteins, tmp_path):
    run = save_run(tmp_path / "run", small_model(attention=SoftmaxConfig()))
    found = compare_checkpoint(proteins[:1], run, dataclasses.replace(SMALL, num_draws=1))
    losses = {evaluation.kind: evaluation.loss for evaluation in found.trunk.evaluations}
    assert losses["trained"] == losses["exact"]


def test_a_checkpoint_whose_keys_are_its_queries_is_refused_with_the_way_out(save_run, proteins, tmp_path):
    run = save_run(tmp_path / "run", small_model(attention=LshConfig(chunk_length=8)))
    with pytest.raises(ConfigError, match=r"keys are its queries.* proteinlm evaluate --set kind=softmax"):
        compare_checkpoint(proteins[:1], run, SMALL)


def test_a_checkpoint_of_one_head_is_compared(save_run, proteins, tmp_path):
    run = save_run(tmp_path / "run", small_model(num_layers=1, num_heads=1))
    found = compare_checkpoint(proteins[:1], run, dataclasses.replace(SMALL, num_draws=1))
    assert len(found.examples) == 1


def test_records_are_drawn_the_same_whatever_is_read_after_the_draw():
    records = [record(f"P{i}") for i in range(50)]
    settings = ComparisonConfig(max_sequences=5)
    chosen, counts = choose_records(iter(records), settings)
    assert [r.identifier for r in chosen] == [r.identifier for r in choose_records(records, settings)[0]]
    assert [records.index(r) for r in chosen] == sorted(records.index(r) for r in chosen)
    assert (counts.num_read, counts.num_not_drawn) == (50, 45)


def test_another_seed_draws_other_records():
    records = [record(f"P{i}") for i in range(50)]
    drawn = [choose_records(records, ComparisonConfig(max_sequences=5, seed=seed))[0] for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_empty_records_are_counted():
    _, counts = choose_records([record("a"), record("b", b"")], ComparisonConfig())
    assert (counts.num_read, counts.num_empty, counts.num_not_drawn) == (2, 1, 0)


def test_substitutions_are_counted():
    _, counts = choose_records([record("a", b"MKJv")], ComparisonConfig())
    assert counts.substitutions == {"J": 1, "lower case": 1}


def test_no_record_with_residues_is_an_error():
    with pytest.raises(FastaError, match="1 records were read, 1 of them without residues"):
        choose_records([record("a", b"")], ComparisonConfig())


def test_only_long_proteins_are_an_error(run_folder, proteins):
    with pytest.raises(ConfigError, match="max_length is 10 but the shortest"):
        compare_checkpoint(proteins, run_folder, ComparisonConfig(max_length=10))


def test_an_odd_number_of_hyperbolic_features_is_an_error(save_run, proteins, tmp_path):
    run = save_run(tmp_path / "run", small_model(attention=FavorConfig(feature_map="hyperbolic")))
    with pytest.raises(ConfigError, match=r"features: num_random_features is 15; expected an even number"):
        compare_checkpoint(proteins, run, ComparisonConfig(num_random_features=(15,)))


@pytest.mark.parametrize("function", ["relu", "exp"])
def test_a_kernel_of_its_own_is_not_compared_with_softmax(save_run, proteins, tmp_path, function):
    attention = FavorConfig(num_random_features=16, feature_map="generalised", kernel_function=function)
    run = save_run(tmp_path / "run", small_model(attention=attention))
    with pytest.raises(
        ConfigError, match=rf"function {function}, a kernel of its own.*compare a checkpoint of softmax"
    ):
        compare_checkpoint(proteins, run, SMALL)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_random_features": ()},
        {"num_random_features": (0,)},
        {"num_random_features": (8, 8)},
        {"num_draws": 0},
        {"max_sequences": 0},
        {"max_length": 0},
        {"separation": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="expected"):
        ComparisonConfig(**settings)


def test_provenance_names_weights_and_sequences(report, run_folder, proteins):
    weights = (run_folder / "checkpoint" / "model.safetensors").read_bytes()
    assert report.provenance["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    text = b"".join(b">" + p.identifier.encode() + b"\n" + p.residues + b"\n" for p in proteins)
    assert report.provenance["sequences_sha256"] == hashlib.sha256(text).hexdigest() == sequences_digest(proteins)


def test_history_is_that_of_the_run(report):
    assert list(report.history) == HISTORY


def test_unigram_counts_are_those_of_the_training_split(report):
    unigram = next(evaluation for evaluation in report.trunk.evaluations if evaluation.kind == "unigram")
    assert report.trunk.unigram_source == "training split"
    assert unigram.loss == pytest.approx(math.log(33))


def test_tables_hold_every_head_and_every_protein(report):
    heads, table = head_table(report), protein_table(report)
    assert [(row["layer"], row["head"]) for row in heads] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert heads[3]["output_error"] == by_head(report.maps.output_error_PNHFR)[1, 1].tolist()
    assert [row["identifier"] for row in table] == [p.identifier for p in report.proteins]
    assert np.isnan(table[3]["output_error"])


def test_verdict_says_from_where_on_uniform_attention_is_beaten(report):
    def with_errors(*errors):
        shape = report.maps.output_error_PNHFR.shape
        maps = dataclasses.replace(
            report.maps,
            output_error_PNHFR=np.broadcast_to(np.array(errors)[:, None], shape),
            uniform_output_error_PNH=np.full(shape[:3], 0.5),
        )
        return reach_verdict(dataclasses.replace(report, maps=maps))

    assert with_errors(0.6, 0.4).beats_uniform_from == 64
    assert with_errors(0.4, 0.3).beats_uniform_from == 8
    assert with_errors(0.4, 0.6).beats_uniform_from is None
    assert "No measured number of features beats uniform" in with_errors(0.7, 0.6).headline


def test_uniform_attention_of_flat_maps_is_no_error(save_run, proteins, tmp_path):
    model = small_model()
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.query_key_value.weight.zero_()
    flat = compare_checkpoint(proteins[:1], save_run(tmp_path / "run", model), dataclasses.replace(SMALL, num_draws=1))
    # float32 weights of 1/L are rounded by at most 2^-24 of themselves
    assert mean(flat.maps.uniform_total_variation_PNH) < 1e-6
    assert reach_verdict(flat).entropy_share == pytest.approx(1, abs=1e-6)


def test_verdict_says_when_features_say_nothing(report):
    large = dataclasses.replace(report.maps, kernel_deviation_PNH=np.full_like(report.maps.kernel_deviation_PNH, 1e9))
    sentences = reach_verdict(dataclasses.replace(report, maps=large)).sentences
    assert "say nothing of a single kernel value" in sentences[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_around_a_comparison_rounds_no_side_of_it(report, run_folder, proteins, dtype):
    with torch.autocast("cpu", dtype=dtype):
        again = compare_checkpoint(proteins, run_folder, SMALL)
    assert np.array_equal(again.maps.output_error_PNHFR, report.maps.output_error_PNHFR)
    assert np.array_equal(again.trunk.hidden_error_QEFR, report.trunk.hidden_error_QEFR)
    assert again.trunk.evaluations == report.trunk.evaluations


def with_one(values, place, value):
    changed = values.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("part", "field", "value", "said"),
    [
        ("maps", "output_error_PNHFR", math.nan, "1 of 48 output errors of FAVOR+ are not finite."),
        ("maps", "uniform_output_error_PNH", math.inf, "1 of 12 output errors of uniform attention are not finite."),
        ("maps", "total_variation_PNHFR", math.nan, "1 of 48 total variations of FAVOR+ are not finite."),
        ("maps", "entropy_PNH", math.inf, "1 of 12 entropies of exact rows are not finite."),
        ("trunk", "hidden_error_QEFR", math.inf, "1 of 16 errors of FAVOR+'s final hidden states are not finite."),
        (
            "trunk",
            "uniform_hidden_error_QE",
            math.nan,
            "1 of 4 errors of uniform attention's final hidden states are not finite.",
        ),
    ],
)
def test_there_is_no_verdict_from_a_figure_that_does_not_exist(report, tmp_path, part, field, said, value):
    figures = getattr(report, part)
    changed = with_one(getattr(figures, field), (0, -1, *(0,) * (getattr(figures, field).ndim - 2)), value)
    damaged = dataclasses.replace(report, **{part: dataclasses.replace(figures, **{field: changed})})
    verdict = reach_verdict(damaged)
    assert verdict.headline == f"No verdict: {said}"
    assert verdict.beats_uniform_from is None
    assert "FAVOR+" not in " ".join(verdict.sentences)
    if math.isnan(value):
        write_report(damaged, tmp_path / "report")
        assert read_report(tmp_path / "report" / "report.json").verdict.headline == verdict.headline


def test_an_infinite_distance_is_no_figure():
    figures = {"output_error_PNHFR": np.array([math.inf, 1.0]), "kernel_deviation_PNH": np.array([math.inf, 1.0])}
    stacked = _stacked([figures])
    np.testing.assert_array_equal(stacked["output_error_PNHFR"], [[math.nan, 1.0]])
    np.testing.assert_array_equal(stacked["kernel_deviation_PNH"], [[math.inf, 1.0]])


def test_there_is_no_verdict_where_no_loss_exists(save_run, proteins, tmp_path):
    model = small_model()
    with torch.no_grad():
        model.masked_lm_head.dense.weight.fill_(3e38)
    settings = dataclasses.replace(SMALL, num_draws=1)
    found = compare_checkpoint(proteins[:1], save_run(tmp_path / "run", model), settings)
    # exact, trained, uniform, identity and FAVOR+ of two numbers of features; frequencies have a loss
    assert reach_verdict(found).headline == "No verdict: 6 of 7 losses on masked residues are not finite."


def test_a_yardstick_that_is_not_finite_is_refused(save_run, proteins, tmp_path):
    model = small_model()
    with torch.no_grad():
        model.encoder.blocks[1].feed_forward.outer.weight.fill_(3e38)
    message = rf"with exact softmax, hidden states 2 of '{re.escape(proteins[0].identifier)}' are not finite"
    with pytest.raises(PrecisionError, match=message):
        compare_checkpoint(proteins[:1], save_run(tmp_path / "run", model), SMALL)


def test_a_perplexity_beyond_a_float_is_a_verdict_and_no_crash(report):
    changed = [dataclasses.replace(e, loss=1e4) if e.kind == "exact" else e for e in report.trunk.evaluations]
    trunk = dataclasses.replace(report.trunk, evaluations=tuple(changed))
    (*_, sentence) = reach_verdict(dataclasses.replace(report, trunk=trunk)).sentences
    assert "predicts residues no better than their frequencies do" in sentence


def test_proteins_without_targets_and_overlaps_get_no_sentence_about_them(report):
    missing = np.full_like(report.maps.top_overlap_PNHFR, np.nan)
    maps = dataclasses.replace(report.maps, top_overlap_PNHFR=missing)
    nothing = [dataclasses.replace(e, loss=math.nan, perplexity=math.nan) for e in report.trunk.evaluations]
    trunk = dataclasses.replace(report.trunk, evaluations=tuple(nothing), num_targets=0)
    verdict = reach_verdict(dataclasses.replace(report, maps=maps, trunk=trunk))
    assert verdict.headline.startswith("FAVOR+ with 8 random features is ")
    assert "–" not in " ".join(verdict.sentences).replace("−", "")
    assert "nan" not in " ".join(verdict.sentences)
    assert "no perplexity to report" in verdict.sentences[-1]
