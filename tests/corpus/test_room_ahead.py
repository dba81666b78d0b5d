"""Room is set aside behind the end of a file, and given back."""

from __future__ import annotations

import os

import pytest

from proteinlm.corpus import room_ahead
from proteinlm.corpus.room_ahead import STEP, RoomAhead


@pytest.fixture
def descriptor(tmp_path, monkeypatch):
    monkeypatch.setattr(room_ahead, "LEAST_FREE", 2 * STEP)
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def on_disk(descriptor):
    return 512 * os.fstat(descriptor).st_blocks


def test_the_size_stays_and_what_is_left_over_is_given_back(descriptor):
    room = RoomAhead(descriptor)
    room.reach(100, 5000)
    if not on_disk(descriptor):
        pytest.skip("this file system sets no room aside, or has none")
    assert os.fstat(descriptor).st_size == 0
    assert on_disk(descriptor) >= STEP
    os.pwrite(descriptor, bytes(5000), 100)
    # nothing more is asked for within it
    before = on_disk(descriptor)
    room.reach(5100, STEP)
    assert on_disk(descriptor) == before
    room.give_back()
    assert os.fstat(descriptor).st_size == 5100
    assert on_disk(descriptor) < 1 << 16
    assert os.pread(descriptor, 6000, 0) == bytes(5100)


def test_where_little_is_free_none_is_set_aside(descriptor, monkeypatch):
    monkeypatch.setattr(room_ahead, "LEAST_FREE", 1 << 62)
    room = RoomAhead(descriptor)
    room.reach(0, 5000)
    room.give_back()
    assert on_disk(descriptor) == os.fstat(descriptor).st_size == 0


def test_a_system_that_cannot_is_not_asked_again(descriptor, monkeypatch):
    asked = []
    monkeypatch.setattr(room_ahead, "_allocator", lambda: lambda *arguments: asked.append(arguments) or -1)
    room = RoomAhead(descriptor)
    for end in (5000, 3 * STEP, 9 * STEP):
        room.reach(0, end)
    assert len(asked) == 1
    monkeypatch.setattr(room_ahead, "_allocator", lambda: None)
    RoomAhead(descriptor).reach(0, 5000)
