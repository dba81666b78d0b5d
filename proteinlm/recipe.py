"""What a whole run is: every setting of data, model and training, and the run it makes."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

import proteinlm
from proteinlm import config
from proteinlm.attention import listed_name
from proteinlm.batches.epochs import ClusterDraw, EpochConfig
from proteinlm.batches.loader import BatchLoader
from proteinlm.batches.masking import MaskingConfig
from proteinlm.batches.packing import PackingConfig
from proteinlm.corpus import TRAIN, Corpus, open_corpus
from proteinlm.errors import CheckpointError, ConfigError, OutputError, PrecisionError
from proteinlm.inference.evaluation import TOKEN_COUNTS, MaskedProteins, evaluate, unigram_score
from proteinlm.inference.pretrained import load
from proteinlm.model import MaskedLM, ModelConfig, save_checkpoint
from proteinlm.model.checkpoint import CHECKPOINT_FOLDER
from proteinlm.outputs import file_beside
from proteinlm.progress import SILENT, Progress
from proteinlm.sequence.alphabet import VOCAB_SIZE, alphabet_digest
from proteinlm.training.engine import build_engine
from proteinlm.training.interface import EngineConfig, TrainingEngine
from proteinlm.training.journal import Journal
from proteinlm.training.loop import RunProgress, RunResult, TrainingConfig, TrainingLoop
from proteinlm.training.objective import MaskedLMObjective
from proteinlm.training.optimiser import OptimiserConfig, ScheduleConfig
from proteinlm.training.processes import holds_more_than_a_lock, sole_run
from proteinlm.training.states import STATE_FOLDER, has_state, newest_tag, read_progress
from proteinlm.training.validation import ValidationConfig, ValidationResult, choose_proteins

RUN_FILE = "run.json"

# settings that may differ when a run goes on: they change no step that was taken
_MAY_CHANGE = {
    "engine.deepspeed_config",
    "training.log_interval",
    "training.checkpoint_interval",
    "training.keep_states",
    "training.windows_per_micro_batch",
    "training.loss_chunk",
    "model.feed_forward_chunk",
    "validation.interval",
}


# tables that recipes of earlier versions lack, with what those versions did
_EARLIER = {"epochs": {"draw": "sequences"}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings of a run; each table's defaults live beside the component that reads it."""

    # names every random stream of the run: first weights, order, masks, dropout, random features
    # when: a second, independent run is wanted
    seed: int = 0
    epochs: EpochConfig = field(default_factory=EpochConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.model.vocab_size < VOCAB_SIZE:
            raise ValueError(f"model.vocab_size is {self.model.vocab_size}; expected at least {VOCAB_SIZE}")


def load_recipe(path: Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a TOML file.

    Args:
        path: the file.
        assignments: settings to change, such as ``model.num_layers=4``; as ``config.assign``.

    Raises:
        ConfigError: names every setting that does not exist or does not fit.
    """
    return config.parse(Recipe, config.assign(Recipe, config.read_table(path), assignments), source=str(path))


def train(
    recipe: Recipe,
    corpus_path: Path,
    folder: Path,
    *,
    resume: bool = False,
    recipe_folder: Path = Path(),
    progress: Progress = SILENT,
) -> RunResult:
    """Train the model of a recipe on a corpus, or go on with a run that was cut off.

    Started by a launcher, every process calls this with the same arguments.

    Args:
        recipe: all settings.
        corpus_path: a corpus made by ``proteinlm ingest``.
        folder: of the run; holds run.json, metrics.jsonl, training_state/ and checkpoint/.
        resume: go on from the newest training state.
        recipe_folder: where paths in the recipe begin.
        progress: is told of every step.

    Raises:
        OutputError: if the folder already holds a run and ``resume`` is not set.
        ConfigError: if recipe or corpus differ from those of the run to go on with, or the corpus lacks
            what the recipe needs.
        InUseError: if another process trains in the folder.
    """
    with sole_run(folder):
        return _train(recipe, corpus_path, folder, resume, recipe_folder, progress)


def _train(
    recipe: Recipe, corpus_path: Path, folder: Path, resume: bool, recipe_folder: Path, progress: Progress
) -> RunResult:
    corpus = open_corpus(corpus_path)
    _check_training_split(corpus, recipe.epochs)
    model = MaskedLM(recipe.model, seed=recipe.seed)
    model.start_at_frequencies(_vocabulary_counts(corpus, recipe.model.vocab_size))
    _check_folder(folder, resume)
    about = describe_run(recipe, corpus)
    if resume:
        _check_same_run(folder, about, recipe.schedule)
    engine = build_engine(
        MaskedLMObjective(model, loss_chunk=recipe.training.loss_chunk),
        recipe.optimiser,
        recipe.engine,
        micro_batch=recipe.training.windows_per_micro_batch,
        windows_per_step=recipe.training.windows_per_step,
        folder=recipe_folder,
        report=progress,
    )
    # a run that was cut off before its first state begins again
    can_go_on = resume and has_state(folder / STATE_FOLDER)
    start = _load_state(recipe, engine, folder / STATE_FOLDER) if can_go_on else RunProgress()
    journal = _open_journal(folder, about, start) if engine.rank == 0 else None
    try:
        result = _loop(recipe, corpus, folder, engine, journal, start, about, progress).run()
        engine.close()
        return result
    finally:
        if journal is not None:
            journal.close()


def _state_identity(recipe: Recipe, engine: TrainingEngine) -> dict[str, Any]:
    """Return what must be the same for a training state to be loaded again."""
    return {"kind": recipe.engine.kind, "zero_stage": recipe.engine.zero_stage, "processes": engine.world_size}


def _load_state(recipe: Recipe, engine: TrainingEngine, folder: Path) -> RunProgress:
    saved, identity = read_progress(folder), _state_identity(recipe, engine)
    if saved["identity"] != identity:
        was, now = (
            ", ".join(f"{name} {value}" for name, value in each.items()) for each in (saved["identity"], identity)
        )
        raise ConfigError(f"{folder}: was saved with {was}, and this run has {now}; resume as the run began")
    engine.load_state(folder / newest_tag(folder))
    return RunProgress.from_table(saved["progress"], rank=engine.rank)


def _loop(
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    engine: TrainingEngine,
    journal: Journal | None,
    start: RunProgress,
    about: dict[str, Any],
    progress: Progress,
) -> TrainingLoop:
    report = progress if engine.rank == 0 else SILENT

    def export(step: int, weights: dict[str, Tensor]) -> None:
        if engine.rank == 0:
            model = engine.objective.model
            path = folder / CHECKPOINT_FOLDER
            save_checkpoint(path, model, about["recipe"], step=step, metadata=about["metadata"], weights=weights)

    return TrainingLoop(
        engine=engine,
        loader=_loader(recipe, corpus, engine, start, report),
        settings=recipe.training,
        optimiser=recipe.optimiser,
        schedule=recipe.schedule,
        splits=validation_splits(corpus, recipe.validation, seed=recipe.seed),
        packing=recipe.packing,
        validation_interval=recipe.validation.interval,
        token_counts=_vocabulary_counts(corpus, VOCAB_SIZE),
        folder=folder,
        export=export,
        identity=_state_identity(recipe, engine),
        journal=journal,
        report=report,
        progress=start,
    )


def _check_training_split(corpus: Corpus, epochs: EpochConfig) -> None:
    if not corpus.splits[TRAIN].num_sequences:
        raise ConfigError(f"{corpus.path}: has no training proteins; ingest with smaller validation shares")
    if epochs.draw == "clusters" and not corpus.sequences(TRAIN).has_clusters:
        raise ConfigError(
            f"{corpus.path}: does not know the clusters of its proteins, of which epochs.draw = 'clusters' takes one "
            "member each; ingest again with --clusters, or set epochs.draw = 'sequences'"
        )


def _loader(
    recipe: Recipe, corpus: Corpus, engine: TrainingEngine, start: RunProgress, report: Progress
) -> BatchLoader:
    sequences = corpus.sequences(TRAIN)
    by_cluster = recipe.epochs.draw == "clusters"
    clusters = ClusterDraw(sequences.clusters, seed=recipe.seed) if by_cluster else None
    if clusters is not None:
        report.note(
            f"an epoch draws one member of each of {clusters.num_clusters:,} clusters ({len(sequences):,} proteins)"
        )
    return BatchLoader(
        sequences,
        sequences.lengths,
        packing=recipe.packing,
        masking=recipe.masking,
        seed=recipe.seed,
        windows_per_step=recipe.training.windows_per_step,
        windows_per_micro_batch=recipe.training.windows_per_micro_batch,
        rank=engine.rank,
        world_size=engine.world_size,
        start=start.next_window,
        clusters=clusters,
    )


def validation_splits(corpus: Corpus, settings: ValidationConfig, *, seed: int) -> dict[str, MaskedProteins]:
    """Return the proteins of every validation split that holds any, with hidden residues."""
    names = [name for name, split in corpus.splits.items() if name != TRAIN and split.num_sequences]
    return {name: choose_proteins(corpus.sequences(name), settings, seed=seed, split=name) for name in names}


@dataclass(frozen=True)
class CheckpointScores:
    """Scores of a checkpoint on the validation splits of a corpus.

    Attributes:
        results: split by split.
        is_training_corpus: the corpus is the one the checkpoint was trained on; where it is not, its
            validation proteins may have been trained on.
    """

    results: list[ValidationResult]
    is_training_corpus: bool


def evaluate_checkpoint(
    path: Path,
    corpus_path: Path,
    *,
    attention: Sequence[str] = (),
    device: str = "cpu",
    progress: Progress = SILENT,
) -> CheckpointScores:
    """Score a checkpoint on every validation split, by the validation settings of its own recipe.

    Args:
        path: a checkpoint or run folder.
        corpus_path: a corpus made by ``proteinlm ingest``.
        attention: assignments such as ``kind=softmax``, to run the same weights with another mechanism.
        device: to run on.
        progress: is told the residues done of each split.

    Raises:
        CheckpointError: if there is no whole checkpoint, or it does not say what it was trained on.
        ConfigError: if there is no such attention, or none that the weights can have.
        PrecisionError: if the loss is not finite.
    """
    pretrained = load(path, device).with_attention(attention)
    recipe = config.parse(Recipe, pretrained.recipe, source=str(pretrained.path))
    counts = pretrained.metadata.get(TOKEN_COUNTS)
    if counts is None:
        raise CheckpointError(f"{pretrained.path}: does not hold the residue counts of its training corpus")
    model = pretrained.model
    used = listed_name(model.config.attention)
    corpus = open_corpus(corpus_path)
    results = []
    for name, masked in validation_splits(corpus, recipe.validation, seed=recipe.seed).items():
        score, target_counts = evaluate(model, masked, recipe.packing, progress=progress, task=name)
        if score.num_targets and not math.isfinite(score.loss):
            raise PrecisionError(
                f"{pretrained.path}: the loss on {name} is not finite, although every weight is: by {used} the model "
                "computes values beyond float32"
            )
        results.append(ValidationResult(name, used, score, unigram_score(counts, target_counts)))
    return CheckpointScores(results, pretrained.metadata.get("corpus") == corpus.digest)


def describe_run(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """Return the resolved recipe with what else decides a run: versions, code and corpus."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "deepspeed") if _is_installed(name)}
    return {
        "recipe": config.to_table(recipe),
        "metadata": {
            "proteinlm": proteinlm.__version__,
            "python": platform.python_version(),
            **versions,
            "git_commit": _git_commit(),
            "alphabet": alphabet_digest(),
            "corpus": corpus.digest,
            TOKEN_COUNTS: _vocabulary_counts(corpus, VOCAB_SIZE),
        },
    }


def _vocabulary_counts(corpus: Corpus, vocab_size: int) -> list[int]:
    counts = [int(count) for count in corpus.splits[TRAIN].token_counts]
    return counts + [0] * (vocab_size - len(counts))


def _check_folder(folder: Path, resume: bool) -> None:
    if not resume and (folder / RUN_FILE).exists():
        raise OutputError(f"{folder}: already holds a run; go on with it by --resume, or name another folder")
    if not resume and folder.exists() and (not folder.is_dir() or holds_more_than_a_lock(folder)):
        raise OutputError(f"{folder}: already exists and is not empty; name another folder for the run")


def _check_same_run(folder: Path, about: dict[str, Any], schedule: ScheduleConfig) -> None:
    path = folder / RUN_FILE
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        old, digest = _EARLIER | before["recipe"], before["metadata"]["corpus"]
        old_schedule = config.parse(ScheduleConfig, old.pop("schedule"), source=f"{path}: schedule")
        old = _flat(old)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read, so there is no run to resume ({error!r})") from error
    if digest != about["metadata"]["corpus"]:
        raise ConfigError(f"{path}: the run was trained on another corpus; resume with the corpus it began with")
    new = _flat({name: table for name, table in about["recipe"].items() if name != "schedule"})
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    faults = [
        f"{name}: was {old.get(name)!r} when the run began and is {new.get(name)!r} now"
        for name in changed
        if name not in _MAY_CHANGE
    ] + _schedule_faults(old_schedule, schedule, folder / STATE_FOLDER)
    if faults:
        raise ConfigError("\n".join([*faults, "resume with the recipe of the run, or start another run"]))


def _schedule_faults(old: ScheduleConfig, new: ScheduleConfig, states: Path) -> list[str]:
    """Return what keeps a run from going on by another schedule: that it would have come here by other steps."""
    num_taken = read_progress(states)["progress"]["step"] if has_state(states) else 0
    if new.num_steps < num_taken:
        return [f"schedule.num_steps: is {new.num_steps:,}, but the run has taken {num_taken:,} steps"]
    step = old.first_difference(new, num_taken)
    if step is None:
        return []
    return [
        f"schedule: step {step + 1:,} of the {num_taken:,} that the run has taken had {old.share(step):.6g} of the "
        f"peak learning rate and would have {new.share(step):.6g} (decay = '{old.decay}', {old.num_steps:,} steps -> "
        f"'{new.decay}', {new.num_steps:,} steps); more steps can be given while the rate has not begun to fall, "
        "with decay = 'constant' or 'wsd'"
    ]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _open_journal(folder: Path, about: dict[str, Any], start: RunProgress) -> Journal:
    path = folder / RUN_FILE
    if path.exists():
        # what the run began with stays, and what it goes on with is added
        before = json.loads(path.read_text(encoding="utf-8"))
        resumed = [*before.get("resumed", []), {"step": start.step, **about}]
        about = {**before, "recipe": about["recipe"], "resumed": resumed}
    with file_beside(path) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Journal(folder, step=start.step)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _git_commit() -> str | None:
    """Return the commit of the source tree, marked where it was changed; None if this is no source tree."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("-changed" if changes.strip() else "")
