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
from contextlib import contextmanager
from pathlib import Path

# tells the benchmarks that it is so
VARIABLE = "BENCHMARK_MEMORY_IS_HELD"
_RUN = 1 << 20
# what is left to the system and to those who need memory meanwhile
_LEFT = 512 << 20


@contextmanager
def held_memory() -> Iterator[None]:
    """Keep free memory from being handed back to a host; takes about 2 s a GB on such a machine."""
    size = max(_free_bytes() - _LEFT, _RUN) // _RUN * _RUN
    print(f"touching {size / 1e9:.1f} GB of free memory, so that it stays", flush=True)
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, size, _RUN):
            for place in range(start, start + _RUN, mmap.PAGESIZE):
                memory[place] = 1
        for start in range(0, size, _RUN):
            memory.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, _RUN - mmap.PAGESIZE)
        os.environ[VARIABLE] = "1"
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def is_memory_held() -> bool:
    return VARIABLE in os.environ


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemFree:"))
