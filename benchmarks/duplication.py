"""The duplication task of the Reformer (arXiv:2001.04451, section 5, table 2), with the parts of this project.

A sequence is 0w0w, w of 255 symbols from 1 to 127, 512 positions in all. A causal model of one block predicts every
next token; the loss counts the second half, whose tokens are all determined. It is trained with 1, 2, 4 and 8 hash
rounds and with exact attention of shared queries and keys, from the same first weights and on the same sequences, and
each of the five is evaluated with all five mechanisms on sequences that it has not seen.

One block can't point to what follows the same symbol: with k = q / |q| a relative offset agrees with itself best at
offset 0. So positions are a learned table in place of rotary ones, and the block has to learn which two rows belong
together. It first learns to read values from 30 steps with words of 3 symbols, in which there is nearly nothing to
choose from; each stands at a random place of both halves, so that the rows which belong together are those of the
full length. Rotations are redrawn in every step of training and for every batch of the evaluation.

Writes after each of the five trainings duplication.csv (trained with, evaluated with, accuracy),
duplication_curves.csv (accuracy during training, processor seconds of its steps), duplication_coverage.csv (share of
the queries whose right key is among the candidates) and a picture. A training takes one thread and about a minute of
its time. All: python benchmarks/run.py duplication. Some, leaving the results of the others as they are:
PYTHONPATH=. python benchmarks/duplication.py 4 8
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from machine import describe
from torch import Tensor, nn
from torch.nn import functional

from proteinlm.attention import LshConfig, SoftmaxConfig, build_attention
from proteinlm.model import ModelConfig, Observer
from proteinlm.model.block import Block, Surroundings
from proteinlm.model.rotary import RotaryPositions
from proteinlm.ops.visibility import Visibility
from proteinlm.randomness import stream, stream_key

RESULTS = Path(__file__).resolve().parent / "results"
SYMBOLS, HALF, CHUNK = 128, 256, 32
LENGTH = 2 * HALF
# token p + 1 is that of position p - (HALF - 1), for p from HALF - 1 on
QUERIES = slice(HALF - 1, LENGTH - 1)
STEPS, BATCH, LEARNING_RATE, WARM_UP = 400, 8, 1e-2, 50
# the curriculum: steps with words of SHORT - 1 symbols before those of full length
SHORT_STEPS, SHORT = 30, 4
EVALUATE_EVERY, CURVE_BATCHES, TABLE_BATCHES = 20, 2, 16
SEED = 0
MECHANISMS = {f"{n}": LshConfig(num_hashes=n, chunk_length=CHUNK) for n in (1, 2, 4, 8)} | {
    "exact": SoftmaxConfig(shared_query_key=True)
}
CONFIG = ModelConfig(
    num_layers=1, hidden_size=128, num_heads=1, feed_forward_size=256, max_temperature=8.0, vocab_size=SYMBOLS
)
# standard deviations; symbols are the smaller, or a query would first of all see its own symbol elsewhere
TABLES = {"tokens_VD": 0.5, "positions_LD": 1.0}


class Copier(nn.Module):
    """Token embedding and a learned table of positions, one block, final norm, and a projection to the symbols."""

    def __init__(self, mechanism: LshConfig | SoftmaxConfig) -> None:
        super().__init__()
        config = dataclasses.replace(CONFIG, attention=mechanism)
        self.tokens_VD = nn.Parameter(torch.empty(SYMBOLS, config.hidden_size))
        self.positions_LD = nn.Parameter(torch.empty(LENGTH, config.hidden_size))
        attention = build_attention(mechanism, head_dim=config.head_dim, layer=0, seed=SEED)
        self.block = Block(config, attention, layer=0)
        self.final_norm = nn.LayerNorm(config.hidden_size)
        self.head_VD = nn.Parameter(torch.empty(SYMBOLS, config.hidden_size))
        for name, weight in self.named_parameters():
            _draw(name, weight)

    def forward(self, tokens_BL: Tensor, places_BL: Tensor, observer: Observer | None = None) -> Tensor:
        """Return logits_BLV of the next token; ``places_BL`` are rows of the table of positions."""
        # turned by nothing: positions are in the table
        unmoved_BL = torch.zeros_like(tokens_BL)
        rotary = RotaryPositions(unmoved_BL, head_dim=CONFIG.head_dim, base=CONFIG.rotary_base, dtype=torch.float32)
        around = Surroundings(rotary, Visibility(*tokens_BL.shape, is_causal=True), observer=observer)
        x_BLD = self.block(self.tokens_VD[tokens_BL] + self.positions_LD[places_BL], around)
        return functional.linear(self.final_norm(x_BLD), self.head_VD)

    def set_step(self, step: int) -> None:
        self.block.attention.set_step(step)

    def with_attention(self, mechanism: LshConfig | SoftmaxConfig) -> Copier:
        other = Copier(mechanism)
        other.load_state_dict(self.state_dict())
        return other.eval()


@torch.no_grad()
def _draw(name: str, weight: Tensor) -> None:
    """Fill a weight from the stream of its name: tables as ``TABLES`` says, projections with 1 / fan-in."""
    if weight.dim() == 1:
        if not name.endswith(("norm.weight", "norm.bias", "logit_H")):
            weight.zero_()
        return
    scale = TABLES.get(name, weight.shape[1] ** -0.5)
    generator = torch.Generator().manual_seed(stream_key(SEED, "duplication", "weights", name))
    weight.copy_(torch.randn(weight.shape, generator=generator) * scale)


def sequences(purpose: str, number: int, half: int = HALF) -> tuple[Tensor, Tensor]:
    """Return batch ``number`` of the sequences for one purpose and their places, both (B, 2 * half).

    A short 0w0w stands in the places that a piece of both halves of a long one has, each sequence elsewhere.
    """
    draws, size = stream(SEED, "duplication", purpose, number, half), BATCH * HALF // half
    words = draws.integers(1, SYMBOLS, (size, half - 1))
    starts = draws.integers(0, HALF - half + 1, (size, 1))
    tokens_BH = functional.pad(torch.from_numpy(words), (1, 0))
    places_BH = torch.from_numpy(starts) + torch.arange(half)
    return torch.cat([tokens_BH, tokens_BH], dim=1), torch.cat([places_BH, places_BH + HALF], dim=1)


def training_loss(model: Copier, tokens_BL: Tensor, places_BL: Tensor) -> Tensor:
    half = tokens_BL.shape[1] // 2
    # the second 0 has a place of its own in a long sequence only
    first = half if half == HALF else half + 1
    logits_BQV = model(tokens_BL, places_BL)[:, first - 1 : -1]
    return functional.cross_entropy(logits_BQV.flatten(0, 1), tokens_BL[:, first:].flatten())


@torch.no_grad()
def accuracy(model: Copier, purpose: str, num_batches: int) -> float:
    """Return the share of right tokens in %; every batch has rotations of its own, none of them a training step's."""
    right = []
    for number in range(num_batches):
        model.set_step(STEPS + number)
        tokens_BL, places_BL = sequences(purpose, number)
        right.append((model(tokens_BL, places_BL)[:, QUERIES].argmax(-1) == tokens_BL[:, HALF:]).double().mean())
    return 100 * float(torch.stack(right).mean())


def rate(step: int) -> float:
    """Return the factor of the learning rate: a linear rise, then half a cosine to 0."""
    rise = (step + 1) / WARM_UP
    return min(rise, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def train(name: str) -> tuple[Copier, list[list[object]]]:
    """Return the trained model, and its accuracy on the way with the processor's seconds."""
    model, curve, seconds = Copier(MECHANISMS[name]), [], 0.0
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    for step in range(STEPS + 1):
        if step % EVALUATE_EVERY == 0:
            curve.append([name, step, f"{accuracy(model, 'curve', CURVE_BATCHES):.2f}", f"{seconds:.1f}"])
            print(*curve[-1], sep="\t", flush=True)
        if step == STEPS:
            break
        # of this process, because others may use the machine meanwhile
        begin = time.process_time()
        model.set_step(step)
        loss = training_loss(model, *sequences("training", step, SHORT if step < SHORT_STEPS else HALF))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        seconds += time.process_time() - begin
    return model, curve


class _Queries:
    """Keeps what the block hands to its mechanism."""

    q_BLHK: Tensor

    def hidden(self, layer: int, hidden_BLD: Tensor) -> None:
        pass

    def attention(
        self, layer: int, inputs: tuple[Tensor, Tensor, Tensor], out_BLHK: Tensor, visibility: Visibility
    ) -> None:
        self.q_BLHK = inputs[0]


@torch.no_grad()
def coverage(model: Copier) -> float:
    """Return the share, in %, of the queries of the second half whose right key is among their candidates."""
    found = []
    for number in range(TABLE_BATCHES):
        model.set_step(STEPS + number)
        model(*sequences("table", number), seen := _Queries())
        map_BHQL = model.block.attention.attention_map(seen.q_BLHK, seen.q_BLHK, rows=QUERIES, is_causal=True)
        # query HALF - 1 + j has to read position j
        found.append((map_BHQL[..., :HALF].diagonal(dim1=-2, dim2=-1) > 0).double().mean())
    return 100 * float(torch.stack(found).mean())


def draw(curves: Sequence[Sequence[object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    labels = {"1": "1 round", "2": "2 rounds", "4": "4 rounds", "8": "8 rounds", "exact": "exact"}
    for (name, label), colour in zip(
        labels.items(), ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#111827"), strict=True
    ):
        points = [(int(str(row[1])), float(str(row[2]))) for row in curves if row[0] == name]
        axis.plot([x for x, _ in points], [y for _, y in points], color=colour, label=label)
    axis.set(xlabel="training step", ylabel="right tokens, %", ylim=(0, 102))
    axis.grid(color="#e3e6ea")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="trained and evaluated with")
    figure.savefig(path, dpi=144)
    pyplot.close(figure)


def write(table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[Sequence[object]]:
    """Write the rows of one training in place of its older ones, and return all rows of the table."""
    path, kept = RESULTS / f"{table}.csv", []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in list(csv.reader(file))[1:] if row[0] != rows[0][0]]
    merged = sorted([*kept, *rows], key=lambda row: list(MECHANISMS).index(str(row[0])))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *merged])
    return merged


def main() -> None:
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MECHANISMS:
        untrained = Copier(MECHANISMS[name])
        model, curve = train(name)
        evaluated = {n: model.with_attention(mechanism) for n, mechanism in MECHANISMS.items()}
        table = [[name, n, f"{accuracy(other, 'table', TABLE_BATCHES):.2f}"] for n, other in evaluated.items()]
        covered = [name, *(f"{coverage(one):.2f}" for one in (untrained, model))]
        print(*table, covered, sep="\n", flush=True)
        write("duplication", ["trained_with", "evaluated_with", "accuracy_percent"], table)
        write("duplication_coverage", ["rounds", "untrained_percent", "trained_percent"], [covered])
        columns = ["trained_with", "step", "accuracy_percent", "processor_seconds"]
        draw(write("duplication_curves", columns, curve), RESULTS / "duplication.png")
    (RESULTS / "duplication.machine.json").write_text(json.dumps(describe(), indent=2) + "\n")


if __name__ == "__main__":
    main()
