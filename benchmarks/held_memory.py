"""Free memory that stays with the machine while benchmarks run.

A virtual machine may hand free memory back to its host, and each page then costs several times as much as
an own one when it is needed again: files of 1 GB in the page cache took 0.3 s or 1.6 s to write, and large
buffers of tensors as unequally. Only runs of free pages, 2 MiB and more, are handed back. So here nearly all
free memory is touched, and then all of it but a page in each MiB is free again, and stays.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proc_files import proc_bytes

# tells the benchmarks that it is so
VARIABLE = "BENCHMARK_MEMORY_IS_HELD"
_RUN = 1 << 20
# what is left to the system and to those who need memory meanwhile
_LEFT = 256 << 20
# a page in each MiB of addresses is not always one in each MiB of memory, so there may be more rounds
_MOST_ROUNDS = 8
_ENOUGH = 1 << 27


@contextmanager
def held_memory() -> Iterator[None]:
    """Keep free memory from being handed back to a host; takes a minute or two for 20 GB."""
    with ExitStack() as held:
        for _ in range(_MOST_ROUNDS):
            size = max(proc_bytes("meminfo", "MemFree") - _LEFT, _RUN) // _RUN * _RUN
            print(f"touching {size / 1e9:.1f} GB of free memory, so that it stays", flush=True)
            _hold(held.enter_context(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
            if _bytes_in_long_runs() < _ENOUGH:
                break
        os.environ[VARIABLE] = "1"
        held.callback(os.environ.pop, VARIABLE)
        yield


def is_memory_held() -> bool:
    return VARIABLE in os.environ


def _hold(memory: mmap.mmap) -> None:
    for place in range(0, len(memory), mmap.PAGESIZE):
        memory[place] = 1
    for start in range(0, len(memory), _RUN):
        memory.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, _RUN - mmap.PAGESIZE)


def _bytes_in_long_runs() -> int:
    """Return the free memory that lies in runs of 2 MiB and more."""
    # a line for each zone, and in it how many runs of 1, 2, 4, ... pages are free
    zones = [line.split()[4:] for line in Path("/proc/buddyinfo").read_text().splitlines()]
    sizes = [mmap.PAGESIZE << order for order in range(max(map(len, zones)))]
    return sum(
        size * int(number) for zone in zones for size, number in zip(sizes, zone, strict=False) if size >= 2 * _RUN
    )
