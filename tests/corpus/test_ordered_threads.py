"""Work in threads comes out in order, and what fails in a thread fails here."""

from __future__ import annotations

import threading
import time

import pytest

from proteinlm.corpus.ordered_threads import Worker, in_order


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_keep_the_order_of_the_items(threads):
    def work(number):
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_order(iter(range(40)), work, threads=threads, room=2)) == [number * number for number in range(40)]


def test_items_are_drawn_no_further_than_there_is_room():
    drawn = []
    results = in_order((drawn.append(number) or number for number in range(100)), str, threads=2, room=3)
    next(results)
    time.sleep(0.2)
    # one was taken, three wait, one waits for room
    assert len(drawn) <= 5
    results.close()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("is_drawn", [True, False], ids=["drawing", "working"])
def test_a_failure_arrives_unchanged_after_the_results_before_it(is_drawn, threads):
    failure = KeyError("no such thing")

    def items():
        yield from range(5)
        if is_drawn:
            raise failure
        yield 5

    def work(number):
        if number == 5:
            raise failure
        return number

    found = []
    with pytest.raises(KeyError) as caught:
        found.extend(in_order(items(), work, threads=threads, room=2))
    assert caught.value is failure
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_end_when_nobody_wants_their_results(threads):
    before = threading.active_count()
    results = in_order(iter(range(1000)), str, threads=threads, room=2)
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("is_threaded", [True, False])
def test_a_worker_does_jobs_in_order_and_all_of_them(is_threaded):
    done = []
    worker = Worker(is_threaded=is_threaded)
    for number in range(20):
        worker.submit(lambda number=number: done.append(number))
    worker.finish()
    assert done == list(range(20))


@pytest.mark.parametrize("is_threaded", [True, False])
def test_a_job_that_fails_ends_the_work(is_threaded):
    failure, done = OSError(28, "No space left on device"), []

    def fail():
        raise failure

    worker = Worker(is_threaded=is_threaded)

    def work():
        for job in (fail, *[lambda: done.append(0)] * 5):
            worker.submit(job)
        worker.finish()

    with pytest.raises(OSError, match="No space left") as caught:
        work()
    assert caught.value is failure
    assert done == []


def test_a_worker_that_is_stopped_leaves_out_what_waits():
    is_going_on, done = threading.Event(), []
    worker = Worker(is_threaded=True, room=4)
    worker.submit(is_going_on.wait)
    for _ in range(3):
        worker.submit(lambda: done.append(0))
    threading.Timer(0.1, is_going_on.set).start()
    worker.stop()
    assert done == []


@pytest.mark.parametrize("is_threaded", [False, True])
def test_waiting_for_a_worker_is_over_when_all_is_done(is_threaded):
    worker, done = Worker(is_threaded=is_threaded), []
    for turn in range(3):
        for number in range(4):
            worker.submit(lambda number=number: (time.sleep(0.002), done.append(number)))
        worker.wait()
        assert done == [0, 1, 2, 3] * (turn + 1)
    worker.finish()


def test_waiting_for_a_worker_that_has_failed_raises_what_it_raised():
    failure = OSError("disk")

    def fail():
        raise failure

    worker = Worker(is_threaded=True)
    worker.submit(fail)
    with pytest.raises(OSError, match="disk") as caught:
        worker.wait()
    assert caught.value is failure
    worker.stop()
