"""Threads that keep the order of their work, and whose failures reach whoever waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Full, Queue
from typing import NoReturn, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# seconds after which a thread that waits looks whether it is still wanted
_PATIENCE = 0.1
# seconds to wait for a thread that reads; one that waits for a terminal or a pipe cannot be woken
_FAREWELL = 2.0


class Worker:
    """Does jobs one after the other: in a thread of its own, or at once where there is none.

    Args:
        is_threaded: whether there is a thread.
        room: how many jobs may wait before ``submit`` does.
    """

    def __init__(self, *, is_threaded: bool, room: int = 2) -> None:
        self._error: BaseException | None = None
        self._jobs: Queue[Callable[[], None] | None] = Queue(maxsize=room)
        self._thread = threading.Thread(target=self._work, daemon=True) if is_threaded else None
        if self._thread is not None:
            self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Do ``job`` after all others.

        Raises:
            BaseException: what an earlier job has raised.
        """
        self._raise()
        if self._thread is None:
            job()
        else:
            self._jobs.put(job)

    def wait(self) -> None:
        """Wait until all that was submitted is done; more may be submitted afterwards.

        Raises:
            BaseException: what a job has raised.
        """
        self._jobs.join()
        self._raise()

    def finish(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: what a job has raised.
        """
        self._end()
        self._raise()

    def stop(self) -> None:
        """Finish the job at hand and leave out the others."""
        self._error = self._error or InterruptedError("stopped")
        self._end()

    def _end(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        # after a failure the rest is taken in and left undone, so that nobody waits for room
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            self._jobs.task_done()
        self._jobs.task_done()


def in_order(items: Iterator[Item], work: Callable[[Item], Result], *, threads: int, room: int) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in their order.

    Items are drawn in a thread of their own and worked on in others, or here where there are none. What
    either raises is raised here, after the results that come before it.

    Args:
        items: drawn in one thread only.
        work: should leave the interpreter's lock alone.
        threads: how many work.
        room: how many results may wait to be taken.
    """
    waiting: Queue[Callable[[], Result] | None] = Queue(maxsize=room)
    is_unwanted = threading.Event()
    pool = ThreadPoolExecutor(threads) if threads else None

    def promise(item: Item) -> Callable[[], Result]:
        return partial(work, item) if pool is None else pool.submit(work, item).result

    reader = threading.Thread(target=_draw, args=(items, promise, waiting, is_unwanted), daemon=True)
    reader.start()
    try:
        while (result := waiting.get()) is not None:
            yield result()
    finally:
        is_unwanted.set()
        reader.join(_FAREWELL)
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _draw(
    items: Iterator[Item],
    promise: Callable[[Item], Callable[[], Result]],
    waiting: Queue[Callable[[], Result] | None],
    is_unwanted: threading.Event,
) -> None:
    try:
        for item in items:
            if not _put(waiting, promise(item), is_unwanted):
                return
    except BaseException as error:
        _put(waiting, partial(_raise, error), is_unwanted)
    else:
        _put(waiting, None, is_unwanted)
    finally:
        if isinstance(items, Generator):
            items.close()


def _raise(error: BaseException) -> NoReturn:
    raise error


def _put(
    waiting: Queue[Callable[[], Result] | None], result: Callable[[], Result] | None, is_unwanted: threading.Event
) -> bool:
    """Put a result where it is waited for; return whether it is still wanted."""
    while not is_unwanted.is_set():
        try:
            waiting.put(result, timeout=_PATIENCE)
        except Full:
            continue
        return True
    return False
