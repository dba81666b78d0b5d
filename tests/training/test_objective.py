"""The training objective, whole and in chunks of positions."""

from __future__ import annotations

import pytest
import torch

from proteinlm.attention import SoftmaxConfig
from proteinlm.batches.loader import MaskedBatch
from proteinlm.batches.masking import NOT_CHOSEN
from proteinlm.model import MaskedLM, ModelConfig
from proteinlm.training.loop import TrainingConfig
from proteinlm.training.objective import MaskedLMObjective
from tests.model.conftest import LiveBytes


def batch(num_targets: int, length: int = 60) -> MaskedBatch:
    tokens = torch.arange(length)[None] % 20 + 4
    targets = torch.full_like(tokens, NOT_CHOSEN)
    targets[0, :num_targets] = (tokens[0, :num_targets] + 3) % 20 + 4
    return MaskedBatch(
        tokens_BL=tokens,
        targets_BL=targets,
        positions_BL=torch.arange(length)[None],
        key_mask_BL=torch.ones(1, length, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, length], dtype=torch.int32),
        window_keys=(3,),
        num_residues=length,
    )


def model(**settings) -> MaskedLM:
    sizes = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "feed_forward_size": 32} | settings
    return MaskedLM(ModelConfig(attention=SoftmaxConfig(), dropout=0.1, **sizes), seed=1).double()


@pytest.mark.parametrize("reversible", [False, True], ids=["ordinary", "reversible"])
@pytest.mark.parametrize("chunk", [1, 7, 59, 60, 61])
def test_loss_in_chunks_has_the_value_and_gradients_of_the_whole(chunk, reversible):
    whole, parts = (MaskedLMObjective(model(reversible=reversible), loss_chunk=size) for size in (0, chunk))
    (expected, right), (loss, found) = whole(batch(30)), parts(batch(30))
    expected.backward()
    loss.backward()
    assert abs(loss - expected) < 1e-10
    assert found == right
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() < 1e-10, name


def test_batch_without_targets_has_no_loss():
    loss, right = MaskedLMObjective(model(), loss_chunk=4)(batch(0))
    loss.backward()
    assert loss == right == 0


def test_loss_in_chunks_accumulates_each_weight_once():
    objective = MaskedLMObjective(model(reversible=True, feed_forward_chunk=16), loss_chunk=4)
    counts = dict.fromkeys(objective.parameters(), 0)

    def count(weight):
        counts[weight] += 1

    for weight in objective.parameters():
        weight.register_post_accumulate_grad_hook(count)
    objective(batch(30))[0].backward()
    # the embedding is input and output: both parts meet before they are accumulated
    assert set(counts.values()) == {1}


def test_loss_in_chunks_lowers_the_peak_of_head_and_loss():
    peaks = []
    for chunk in (0, 8):
        objective = MaskedLMObjective(model(hidden_size=128, num_heads=2), loss_chunk=chunk)
        hidden_TD = torch.zeros(1, 600, 128, dtype=torch.float64, requires_grad=True)
        objective.model.encode = lambda *_, hidden_TD=hidden_TD, **__: hidden_TD
        for weight in objective.parameters():
            weight.grad = torch.zeros_like(weight)
        with LiveBytes() as live:
            objective(batch(600, 600))[0].backward()
        peaks.append(live.peak)
    # what the dense layer and its norm keep; hidden states and their gradients stay
    assert peaks[0] - peaks[1] > 2 * hidden_TD.nbytes


def test_negative_loss_chunk_is_refused():
    with pytest.raises(ValueError, match="loss_chunk is -1; expected 0 or more"):
        TrainingConfig(loss_chunk=-1)
