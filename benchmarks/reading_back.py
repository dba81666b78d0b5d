"""Reading back: windows of 8,192 tokens by four worker processes, from the page cache, before collation.

"windows" are those of the loader: about eighteen pieces of proteins at random places of all shards, with
positions and bounds. "joined" are the same windows piece by piece in Python, which is how sequences that
are not mapped are read. "runs" are 8,192 tokens in a row at a random place of a shard, as an upper bound.
The corpus holds the sample's proteins 36 times (309 MB of tokens). Writes benchmarks/results/reading_back.csv.
Run it alone on the machine: python benchmarks/run.py reading_back
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import h5py
import numpy
from measuring import write_machine, write_rows
from numpy.typing import NDArray

from proteinlm.batches.packing import PackingConfig, WindowPlan, build_window, plan_windows
from proteinlm.corpus import IngestionConfig, SequenceSet, SplittingConfig, ingest, open_corpus
from proteinlm.corpus.layout import TOKENS_DATASET
from proteinlm.sequence.fasta import read_fasta

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data_manifests" / "sample" / "uniprotkb_sample.fasta.xz"
COPIES = 36
WINDOW = 8192
WORKERS = 4
TURNS = 5
SECONDS = 1.0

# reads the window of this number and returns how many tokens it holds
Read = Callable[[int], int]


class OneByOne:
    """The sequences without their addresses."""

    def __init__(self, sequences: SequenceSet) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def tokens(self, index: int) -> NDArray[numpy.uint8]:
        return self._sequences.tokens(index)


def build_corpus(folder: Path) -> Path:
    records = [(record.identifier.encode(), record.residues) for record in read_fasta([SAMPLE])]
    fasta = folder / "copies.fasta"
    with fasta.open("wb") as file:
        for copy in range(COPIES):
            file.writelines(b">%d_%s\n%s\n" % (copy, name, residues) for name, residues in records)
    ingest([fasta], folder / "corpus", config=IngestionConfig(splitting=SplittingConfig(validation_share=0.0)))
    fasta.unlink()
    return folder / "corpus"


def mapped_tokens(path: Path) -> NDArray[numpy.uint8]:
    with h5py.File(path, "r") as file:
        tokens = file[TOKENS_DATASET]
        return numpy.memmap(path, "u1", "r", offset=tokens.id.get_offset(), shape=tokens.shape)


def ways(corpus: Path) -> tuple[dict[str, Read], WindowPlan]:
    sequences = open_corpus(corpus).sequences("train")
    order = numpy.random.default_rng(0).permutation(len(sequences))
    plan = plan_windows(sequences.lengths, PackingConfig(window_length=WINDOW), order=order)
    one_by_one = OneByOne(sequences)
    shards = [numpy.asarray(mapped_tokens(path)) for path in sorted(corpus.glob("*.h5"))]
    # into the page cache, and the compiled code into memory
    total = sum(int(shard[::512].sum(dtype=numpy.int64)) for shard in shards)
    assert total > 0
    build_window(plan, 0, sequences)
    places = numpy.random.default_rng(1).random(plan.num_windows)

    def run(number: int) -> int:
        shard = shards[number % len(shards)]
        start = int(places[number] * (len(shard) - WINDOW))
        return len(shard[start : start + WINDOW].copy())

    return {
        "windows": lambda number: build_window(plan, number, sequences).num_tokens,
        "joined": lambda number: build_window(plan, number, one_by_one).num_tokens,
        "runs": run,
    }, plan


def work(read: Read, numbers: list[int], start: Barrier, sums: multiprocessing.SimpleQueue) -> None:  # type: ignore[type-arg]
    start.wait()
    began, cpu = time.perf_counter(), time.process_time()
    tokens = windows = 0
    while time.perf_counter() - began < SECONDS:
        tokens += read(numbers[windows % len(numbers)])
        windows += 1
    sums.put((tokens, windows, time.perf_counter() - began, time.process_time() - cpu))


def measure(read: Read, num_windows: int) -> tuple[float, float]:
    """Return gigabytes a second in sum over the workers, and for each second of a core."""
    context = multiprocessing.get_context("fork")
    start, sums = context.Barrier(WORKERS), context.SimpleQueue()
    shuffled = numpy.random.default_rng(2).permutation(num_windows).tolist()
    workers = [
        context.Process(target=work, args=(read, shuffled[rank::WORKERS], start, sums)) for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    found = [sums.get() for _ in workers]
    for worker in workers:
        worker.join()
    rate = sum(tokens / seconds for tokens, _, seconds, _ in found)
    return rate / 1e9, sum(tokens for tokens, *_ in found) / sum(cpu for *_, cpu in found) / 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        reads, plan = ways(build_corpus(Path(folder)))
        turns = [{name: measure(read, plan.num_windows) for name, read in reads.items()} for _ in range(TURNS)]
    rows = []
    for name in reads:
        rates, by_core = zip(*(turn[name] for turn in turns), strict=True)
        beside = statistics.median(turn[name][0] / turn["joined"][0] for turn in turns)
        rows.append(
            {
                "read": name,
                "workers": WORKERS,
                "gigabytes_per_second": f"{statistics.median(rates):.2f}",
                "gigabytes_per_core_second": f"{statistics.median(by_core):.2f}",
                "times_joined": f"{beside:.1f}",
            }
        )
        print(*rows[-1].values(), sep="\t", flush=True)
    write_rows("reading_back", rows)
    pieces = len(plan.sequence) / plan.num_windows
    write_machine("reading_back", pieces_in_a_window=f"{pieces:.1f}")


if __name__ == "__main__":
    main()
