"""BigBird's attention: the queries of a block see one set of keys, and equally large sets share a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor

from proteinlm.ops.blank_map import BlankMap
from proteinlm.ops.block_sparse_attention.pattern import BlockPattern, random_blocks, reaches
from proteinlm.ops.sparse_softmax import READING_ELEMENTS, Reading, fill_sparsely, sparse_softmax
from proteinlm.ops.tiles import Segment, Tile
from proteinlm.ops.visibility import Seen, Visibility, check_inputs

# a run of positions, half-open
Run = tuple[int, int]


def bigbird_attention(
    q_BLHK: Tensor, k_BLHK: Tensor, v_BLHK: Tensor, pattern: BlockPattern, **seen: Unpack[Seen]
) -> Tensor:
    """Return softmax attention of q, k, v (B, L, H, K) over a window, global tokens and random blocks.

    See ``pattern``. Exactly 0, with zero gradients, where a query sees no key. Each segment has a pattern of its own,
    a function of its length up to the last visible key, the seed and the layer: packed and padded
    equal alone. Time linear in L for fixed sizes, memory O(L K) a head, forward and backward; any
    length. Scores and sums are float32 for any input but float64, also under autocast.

    Args:
        seen: see ``Visibility``; there is no causal form.

    Returns:
        out_BLHK in the dtype of ``v_BLHK``. Differentiable once. A hidden position may hold anything.

    Raises:
        ShapeError: if the arguments do not fit together.
        UnavailableError: if a causal form is asked for.

    Source: Zaheer et al., NeurIPS 2020, arXiv:2007.14062, section 2.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, v_BLHK, bidirectional_only="BigBird's attention", **seen)
    most_weights = READING_ELEMENTS // q_BLHK.shape[2]
    # each layer has a pattern of its own: there is nothing for another one to use again
    groups = _group(_pairs(visibility, pattern, most_weights), most_weights)
    plan = [_reading(group, q_BLHK.device) for group in groups]
    return sparse_softmax(visibility.finite_queries(q_BLHK), k_BLHK, v_BLHK, plan)


def bigbird_map(
    q_BLHK: Tensor, k_BLHK: Tensor, pattern: BlockPattern, *, rows: slice = slice(None), **seen: Unpack[Seen]
) -> Tensor:
    """Return the weights of ``bigbird_attention`` for some rows of queries (B, L, H, K), without gradient.

    Args:
        rows: the queries wanted, a slice of L with step 1.
        seen: see ``Visibility``; there is no causal form.

    Returns:
        map_BHRL, float32, or float64 for float64 queries or keys; rows sum to 1 where a key is seen
        and are 0 elsewhere.
    """
    visibility = check_inputs(q_BLHK, k_BLHK, bidirectional_only="BigBird's attention", **seen)
    pairs = _pairs(visibility, pattern, READING_ELEMENTS // q_BLHK.shape[2])
    readings = (_reading([pair], q_BLHK.device) for pair in pairs)
    return fill_sparsely(
        BlankMap(visibility, rows, q_BLHK, k_BLHK), visibility.finite_queries(q_BLHK), k_BLHK, readings
    )


def _pairs(visibility: Visibility, pattern: BlockPattern, most_weights: int) -> list[tuple[Tensor, Tensor]]:
    """Return positions of queries with the positions that they all see, at least one, on the CPU."""
    mask_T = None if visibility.mask_T is None else visibility.mask_T.cpu()
    pairs = []
    for segment, reach in zip(visibility.segments, reaches(visibility.segments, mask_T), strict=True):
        for (first, behind), runs in _sets(segment, reach, pattern) if segment.num_visible else ():
            keys_J = torch.cat([torch.arange(a + segment.start, b + segment.start) for a, b in runs])
            if mask_T is not None and segment.num_visible < len(segment):
                keys_J = keys_J[mask_T[keys_J]]
            queries_C = torch.arange(first + segment.start, behind + segment.start)
            if len(keys_J):
                pairs += [(part, keys_J) for part in torch.split(queries_C, max(1, most_weights // len(keys_J)))]
    return pairs


def _sets(segment: Segment, reach: int, pattern: BlockPattern) -> Iterator[tuple[Run, list[Run]]]:
    """Yield runs of queries with the runs of keys that they see, counted from the start of the segment."""
    length, size = len(segment), pattern.block_length
    num_global = min(pattern.num_global_tokens, length)
    drawn = random_blocks(pattern, -(-reach // size))
    queries, seen = (0, num_global), [(0, length)]
    for block in range(num_global // size, -(-length // size)):
        near = (block - pattern.num_window_blocks, block + pattern.num_window_blocks + 1)
        blocks = [near, *((i, i + 1) for i in (drawn[block] if block < len(drawn) else ()))]
        runs = _union([(0, num_global), *((max(a, 0) * size, min(b * size, length)) for a, b in blocks)])
        if runs != seen:
            yield from _unless_empty(queries, seen)
            queries, seen = (queries[1], queries[1]), runs
        queries = (queries[0], min((block + 1) * size, length))
    yield from _unless_empty(queries, seen)


def _unless_empty(queries: Run, seen: list[Run]) -> list[tuple[Run, list[Run]]]:
    return [(queries, seen)] if queries[0] < queries[1] else []


def _union(runs: list[Run]) -> list[Run]:
    joined: list[Run] = []
    for start, stop in sorted(run for run in runs if run[0] < run[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _group(pairs: list[tuple[Tensor, Tensor]], most_weights: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield pairs of about equal sizes whose weights fit one reading; repetition takes less than half of it."""
    group: list[tuple[Tensor, Tensor]] = []
    for queries_C, keys_J in sorted(pairs, key=lambda pair: (len(pair[1]), len(pair[0])), reverse=True):
        if group:
            sizes, most_keys = [len(queries_C), *(len(queries) for queries, _ in group)], len(group[0][1])
            is_full = len(sizes) * max(sizes) * most_keys > most_weights
            if is_full or 4 * len(keys_J) < 3 * most_keys or 4 * min(sizes) < 3 * max(sizes):
                yield group
                group = []
        group.append((queries_C, keys_J))
    if group:
        yield group


def _reading(group: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Reading:
    queries, keys = zip(*group, strict=True)
    return Reading(_tile(queries, device), _tile(keys, device))


def _tile(parts: Sequence[Tensor], device: torch.device) -> Tile:
    first, behind = int(parts[0][0]), int(parts[0][-1]) + 1
    if len(parts) == 1 and behind - first == len(parts[0]):
        # read in place: what global tokens see is as long as the segment
        return Tile(slice(first, behind), 1, None, None)
    lengths_S1 = torch.tensor([len(part) for part in parts])[:, None]
    # a position of no tile, so that what fills up is easily told
    padded_SC = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=-1)
    real_SC = padded_SC >= 0
    positions = torch.where(real_SC, padded_SC, padded_SC.gather(1, lengths_S1 - 1)).flatten().to(device)
    if real_SC.all():
        return Tile(positions, len(parts), None, None)
    return Tile(positions, len(parts), real_SC.flatten().to(device), ~real_SC.to(device))
