from __future__ import annotations

import torch

from proteinlm.analysis.trunks import build_trunks
from proteinlm.attention import FavorConfig
from tests.analysis.conftest import SMALL, small_model


def test_exact_below_counts_as_off():
    model = small_model(attention=FavorConfig(num_random_features=16, exact_below=1000))
    trunks = build_trunks(model, SMALL)
    tokens = torch.randint(4, 24, (1, 30))
    by_features = small_model(attention=FavorConfig(num_random_features=16))
    assert torch.equal(trunks.trained(tokens), by_features(tokens))
    assert all(m.config.attention.exact_below == 0 for m in [trunks.trained, *(m for d in trunks.favor for m in d)])
