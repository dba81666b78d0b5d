"""Training and embedding beside other work: how threads wait, and how many there are.

A thread of OpenMP that is done with its share waits for the others, by spinning or asleep. Beside other work
the one waited for may have no processor, and whoever spins keeps it from getting one. A worker process for
each number of threads and way of waiting trains the quickstart's model and embeds 20 proteins of the sample, turn by
turn with the other workers, alone and beside processes that only count. Median and fastest turns go to
benchmarks/results/busy_machine.csv: python benchmarks/run.py busy_machine
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proteinlm.batches.loader import MaskedBatch
    from proteinlm.training.local_engine import LocalEngine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SAMPLE = ROOT / "data_manifests" / "sample" / "uniprotkb_sample.fasta.xz"
TURNS, COMPANIES, THREADS = 7, (0, 1, 2), (1, 2)
WORKER = "worker"
# what libgomp does by itself is to spin 300,000 times, which is some milliseconds
WAITING = {
    "as libgomp does": {},
    "spinning 10,000 times": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def work() -> None:
    """Train two steps and embed 20 proteins for every line on standard input, and answer with both times."""
    from itertools import islice

    import torch
    from measuring import seconds

    from proteinlm.batches.loader import BatchLoader
    from proteinlm.inference.pretrained import PretrainedModel
    from proteinlm.model import MaskedLM
    from proteinlm.recipe import load_recipe
    from proteinlm.sequence.fasta import read_fasta
    from proteinlm.training.local_engine import LocalEngine
    from proteinlm.training.objective import MaskedLMObjective

    recipe = load_recipe(ROOT / "pipelines" / "quickstart.toml")
    proteins = Proteins([record.residues for record in islice(read_fasta([SAMPLE]), 500)])
    loader = BatchLoader(
        proteins,
        proteins.lengths,
        packing=recipe.packing,
        masking=recipe.masking,
        seed=0,
        windows_per_step=2,
        windows_per_micro_batch=2,
    )
    model = MaskedLM(recipe.model, seed=0)
    engine = LocalEngine(MaskedLMObjective(model), recipe.optimiser, torch.device("cpu"))
    pretrained = PretrainedModel(model, {}, 0, Path(), {})
    short = sorted((residues.decode() for residues in proteins.residues), key=len)[100:120]

    for _ in sys.stdin:
        batches = [*loader.next_step(), *loader.next_step()]
        training = seconds(lambda batches=batches: [train(engine, batch) for batch in batches])
        embedding = seconds(lambda: list(pretrained.embed(short)))
        print(json.dumps([sum(batch.num_residues for batch in batches) / training, embedding]), flush=True)


def train(engine: LocalEngine, batch: MaskedBatch) -> None:
    engine.step([batch], num_targets=batch.num_targets, learning_rate=1e-3)


class Proteins:
    """Encoded proteins, as a split of a corpus offers them."""

    def __init__(self, residues: list[bytes]) -> None:
        import numpy

        self.residues = residues
        self.lengths = numpy.array([len(each) for each in residues])

    def __len__(self) -> int:
        return len(self.residues)

    def tokens(self, index: int):
        from proteinlm.sequence.alphabet import encode

        return encode(self.residues[index]).tokens


class Worker:
    """A process with its own way of waiting, which OpenMP reads only once."""

    def __init__(self, threads: int, waiting: dict[str, str]) -> None:
        unset = {name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}
        environment = {**unset, **waiting, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, WORKER]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> tuple[float, float]:
        """Return residues trained on in a second, and seconds that 20 proteins took."""
        print(file=self._process.stdin, flush=True)
        speed, embedding = json.loads(self._process.stdout.readline())
        return speed, embedding

    def close(self) -> None:
        self._process.communicate()


@contextmanager
def company(number: int) -> Iterator[None]:
    """Keep as many processors busy as they can be by processes that only count."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    from machine import describe

    rows = []
    with ExitStack() as stack:
        workers = {pair: Worker(pair[0], WAITING[pair[1]]) for pair in itertools.product(THREADS, WAITING)}
        for worker in workers.values():
            stack.callback(worker.close)
            worker.turn()
        for number in COMPANIES:
            with company(number):
                turns = [{pair: worker.turn() for pair, worker in workers.items()} for _ in range(TURNS)]
            for threads, waiting in workers:
                speeds, embedding = zip(*(turn[threads, waiting] for turn in turns), strict=True)
                figures = [f"{statistics.median(speeds):.0f}", f"{max(speeds):.0f}"]
                figures += [f"{statistics.median(embedding):.2f}", f"{min(embedding):.2f}"]
                rows.append([number, threads, waiting, *figures])
                print(*rows[-1], sep="\t", flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "busy_machine.csv").open("w", newline="") as file:
        names = ["trained_residues_per_second", "fastest", "seconds_for_20_proteins", "shortest"]
        csv.writer(file).writerows([["busy_processes", "threads", "waiting", *names], *rows])
    (RESULTS / "busy_machine.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")


if __name__ == "__main__":
    work() if sys.argv[1:] == [WORKER] else main()
