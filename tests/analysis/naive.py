"""The figures of an agreement as one would write them on a blackboard: whole maps, float64 loops."""

from __future__ import annotations

import math

import numpy as np


def total_variation(exact_LL, other_LL):
    return float(np.mean([0.5 * sum(abs(a - b) for a, b in zip(*rows)) for rows in zip(exact_LL, other_LL)]))  # noqa: B905


def output_error(exact_LL, other_LL, values_LK):
    exact_LK, other_LK = exact_LL @ values_LK, other_LL @ values_LK
    return float(np.linalg.norm(other_LK - exact_LK) / np.linalg.norm(exact_LK))


def top_overlap(exact_LL, other_LL, first, last, separation):
    pairs = [(i, j) for i in range(first, last) for j in range(first, last) if abs(i - j) >= separation]
    count = min(last - first, len(pairs))
    if not count:
        return math.nan
    top = [set(sorted(pairs, key=lambda pair: -weights[pair])[:count]) for weights in (exact_LL, other_LL)]
    return len(top[0] & top[1]) / count


def entropy(map_LL):
    return float(np.mean([-sum(a * math.log(a) for a in row if a > 0) for row in map_LL]))


def kernel_deviation(queries_LK, keys_LK):
    scale = queries_LK.shape[1] ** 0.25
    deviations = [
        math.sqrt(math.expm1(float(np.square(q / scale + k / scale).sum()))) for q in queries_LK for k in keys_LK
    ]
    return float(np.mean(deviations))
