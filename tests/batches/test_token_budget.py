"""Batches by tokens lose nothing, keep the order and stay within the budget."""

from __future__ import annotations

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from proteinlm.batches.token_budget import in_token_batches

LENGTHS = st.lists(st.integers(0, 60))
BUDGETS = st.integers(1, 100)


def batches(lengths: list[int], budget: int) -> list[list[int]]:
    return list(in_token_batches(lengths, int, toks_per_batch=budget))


@given(LENGTHS, BUDGETS)
def test_every_item_is_in_one_batch_in_order(lengths: list[int], budget: int):
    assert list(chain.from_iterable(batches(lengths, budget))) == lengths


@given(LENGTHS, BUDGETS)
def test_only_a_batch_of_one_item_exceeds_the_budget(lengths: list[int], budget: int):
    assert all(sum(batch) <= budget or len(batch) == 1 for batch in batches(lengths, budget))


@given(LENGTHS, BUDGETS)
def test_no_batch_is_empty_or_has_room_for_the_next_item(lengths: list[int], budget: int):
    found = batches(lengths, budget)
    assert all(found)
    assert all(sum(batch) + following[0] > budget for batch, following in pairwise(found))


@given(LENGTHS, LENGTHS, BUDGETS)
def test_batches_depend_on_earlier_items_only(lengths: list[int], later: list[int], budget: int):
    before, after = batches(lengths, budget), batches(lengths + later, budget)
    # the last batch may still grow
    assert after[: max(len(before) - 1, 0)] == before[:-1]


def test_a_batch_is_given_out_before_the_input_ends():
    endless = iter(int, 1)
    assert next(in_token_batches(endless, lambda _: 10, toks_per_batch=30)) == [0, 0, 0]
