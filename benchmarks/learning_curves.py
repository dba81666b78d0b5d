"""Learning curves of an ordinary and a reversible trunk, exact softmax, on the same batches of real proteins.

The quickstart's model (4 layers, d = 128) without its local convolution is trained by its softmax recipe, in one
process, on the sample that the project carries: once with each trunk, from the same weights and with the same masks.
The two are different functions of the weights, and the Reformer's paper finds that their learning curves agree.
Validation loss is that of hidden residues of proteins that were not trained on, and its relative difference at the last
step is to be within 1 %. Losses do not depend on how busy the machine is. Writes learning_curves.csv,
learning_curves_difference.csv and a picture.

    python benchmarks/run.py learning_curves       two runs, about five minutes on two cores
    python benchmarks/learning_curves.py --small   two steps each; writes nothing

Source: Kitaev et al., ICLR 2020, arXiv:2001.04451, figure 3.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import COLOURS, RESULTS, Row, figure, markdown, tidy, write_machine, write_rows

from proteinlm.corpus import ingest_manifest
from proteinlm.recipe import Recipe, load_recipe, train
from proteinlm.training.journal import METRICS_FILE, read_metrics

ROOT = Path(__file__).resolve().parents[1]
NUM_STEPS, EVERY, WINDOWS = 160, 20, 4
ORDINARY, REVERSIBLE = "ordinary", "reversible"
RUNS = {ORDINARY: "model.reversible=false", REVERSIBLE: "model.reversible=true"}


def recipe(name: str, num_steps: int) -> Recipe:
    changes = {
        "model.local_convolution": 0,
        "schedule.num_steps": num_steps,
        "schedule.warmup_steps": min(20, num_steps),
        "training.windows_per_step": WINDOWS,
        "training.windows_per_micro_batch": WINDOWS,
        "training.log_interval": 1,
        "training.checkpoint_interval": num_steps,
        "validation.interval": EVERY,
        "validation.num_proteins": 200 if num_steps == NUM_STEPS else 10,
        "engine.kind": "local",
        "engine.zero_stage": 0,
    }
    assignments = [*(f"{setting}={value}" for setting, value in changes.items()), RUNS[name]]
    return load_recipe(ROOT / "pipelines" / "quickstart_softmax.toml", assignments)


def learn(name: str, corpus: Path, folder: Path, num_steps: int) -> list[Row]:
    """Train one model and return its losses, those of the last step's validation last."""
    start = time.perf_counter()
    train(recipe(name, num_steps), corpus, folder)
    rows: list[Row] = []
    for entry in read_metrics(folder / METRICS_FILE):
        which = entry.get("split", "train")
        rows.append({"trunk": name, "split": which, "step": entry["step"], "loss": round(entry["loss"], 5)})
    print(f"{name}: {num_steps} steps in {time.perf_counter() - start:.0f} s", flush=True)
    return rows


def differences(rows: Sequence[Row]) -> list[Row]:
    """Return, for every validated step, the losses and how far they are from the ordinary trunk's."""
    found: list[Row] = []
    for split in dict.fromkeys(row["split"] for row in rows if row["split"] != "train"):
        losses = {(row["trunk"], row["step"]): float(str(row["loss"])) for row in rows if row["split"] == split}
        for step in [step for trunk, step in losses if trunk == ORDINARY]:
            line: Row = {"split": split, "step": step, **{name: losses[name, step] for name in RUNS}}
            line["difference"] = f"{100 * (losses[REVERSIBLE, step] / losses[ORDINARY, step] - 1):+.2f} %"
            found.append(line)
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    splits = list(dict.fromkeys(str(row["split"]) for row in rows))
    picture, axes = figure(len(splits), 4.6 * len(splits))
    for axis, split in zip(axes[0], splits, strict=True):
        for name, colour in zip(RUNS, COLOURS, strict=False):
            series = [row for row in rows if (row["trunk"], row["split"]) == (name, split)]
            # dashed over solid: where the curves agree, both are seen
            style, width = "-" if name == ORDINARY else "--", 0.8 if split == "train" else 1.5
            steps, losses = [row["step"] for row in series], [row["loss"] for row in series]
            axis.plot(steps, losses, style, linewidth=width, color=colour, label=name)
        tidy(axis, xlabel="step", ylabel="loss, nats per hidden residue", title=split)
    axes[0][0].legend(frameon=False)
    picture.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two steps each; writes no results")
    num_steps = 2 if parser.parse_args().small else NUM_STEPS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ingest_manifest(ROOT / "data_manifests" / "uniprotkb_sample.toml", folder / "corpus")
        for number, trunk in enumerate(RUNS):
            rows += learn(trunk, folder / "corpus", folder / f"run{number}", num_steps)
    found = differences(rows)
    print(markdown(found))
    if num_steps < NUM_STEPS:
        return
    write_rows("learning_curves", rows)
    write_rows("learning_curves_difference", found)
    write_machine("learning_curves")
    draw(rows, RESULTS / "learning_curves.png")


if __name__ == "__main__":
    main()
