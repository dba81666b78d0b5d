"""Random streams."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proteinlm.randomness import stream, stream_key

parts = st.lists(st.one_of(st.integers(-5, 5), st.text(max_size=3)), max_size=4)


@given(parts, parts)
def test_different_names_give_different_keys(first, second):
    assert (stream_key(1, *first) == stream_key(1, *second)) == (first == second)


def test_keys_are_the_same_on_every_machine():
    assert stream_key(0, "masking", 3, 17) == 803506596291739819


@given(st.integers(0, 2**63 - 1), parts)
def test_keys_fit_a_torch_generator(seed, names):
    assert 0 <= stream_key(seed, *names) < 2**63


def test_stream_starts_anew_each_time():
    assert stream(1, "a").random() == stream(1, "a").random() != stream(1, "b").random()


@pytest.mark.parametrize("kind", [numpy.int64, numpy.uint8, numpy.int32])
def test_integers_of_every_kind_name_the_same_stream(kind):
    assert stream_key(kind(3), "masking", kind(17)) == stream_key(3, "masking", 17)


def test_numpy_strings_name_the_same_stream():
    assert stream_key(1, numpy.str_("masking")) == stream_key(1, "masking")


@pytest.mark.parametrize("part", [True, numpy.True_, 1.0, numpy.float64(1), None, b"a"], ids=repr)
def test_what_is_neither_a_string_nor_an_integer_is_refused(part):
    with pytest.raises(TypeError):
        stream_key(1, part)
