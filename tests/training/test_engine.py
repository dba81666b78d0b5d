"""DeepSpeed against plain torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from proteinlm import config
from proteinlm.errors import ConfigError
from proteinlm.model import load_checkpoint
from proteinlm.recipe import train
from proteinlm.training.engine import deepspeed_settings
from proteinlm.training.interface import EngineConfig
from proteinlm.training.journal import read_metrics
from proteinlm.training.optimiser import OptimiserConfig
from proteinlm.training.states import read_progress

PROGRAM = """
import json, sys
from pathlib import Path
from proteinlm import config
from proteinlm.recipe import Recipe, train
recipe = config.parse(Recipe, json.loads(sys.argv[1]), source="test")
train(recipe, Path(sys.argv[2]), Path(sys.argv[3]))
"""


def _losses(folder):
    return [entry["loss"] for entry in read_metrics(folder / "metrics.jsonl")]


def _norms(folder):
    return [entry["gradient_norm"] for entry in read_metrics(folder / "metrics.jsonl") if entry["kind"] == "train"]


def _launch(recipe, corpus, folder, *, num_processes):
    """Start training by a launcher in a process group of its own, each process on one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    program = folder.parent / "program.py"
    program.write_text(PROGRAM)
    arguments = [str(program), json.dumps(config.to_table(recipe)), str(corpus), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *arguments], env=environment, start_new_session=True, **pipes)


def _run_processes(recipe, corpus, folder, *, num_processes):
    """Train by a launcher to the end and return what it printed to stdout."""
    launched = _launch(recipe, corpus, folder, num_processes=num_processes)
    output, errors = launched.communicate(timeout=300)
    assert launched.returncode == 0, errors[-3000:]
    return output


@pytest.mark.processes
@pytest.mark.parametrize(
    ("stage", "micro_batch"),
    [
        (1, 1),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
    ids=["zero1-accumulated", "zero0-accumulated", "zero1", "zero2-accumulated", "zero3-accumulated"],
)
def test_two_processes_train_as_one_does(recipe, tiny_corpus, tmp_path, stage, micro_batch):
    # dropout and very unequal numbers of targets in the micro-batches show wrong streams and wrong divisions
    common = {"model": {"dropout": 0.1}, "masking": {"rate": 0.02}}
    train(recipe(**common, training={"windows_per_micro_batch": 4}), tiny_corpus, tmp_path / "one")
    two = recipe(
        **common,
        training={"windows_per_micro_batch": micro_batch},
        engine={"kind": "deepspeed", "zero_stage": stage},
    )
    printed = _run_processes(two, tiny_corpus, tmp_path / "two", num_processes=2)
    assert printed == "", "stdout is for results"
    one, other = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == len(other) == 12
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-4
    weights = load_file(tmp_path / "one" / "checkpoint" / "model.safetensors")
    others = load_file(tmp_path / "two" / "checkpoint" / "model.safetensors")
    assert weights.keys() == others.keys()
    assert max((weight - others[name]).abs().max() for name, weight in weights.items()) < 1e-4
    assert _norms(tmp_path / "one") == pytest.approx(_norms(tmp_path / "two"), rel=1e-4)


REVERSIBLE = {"num_layers": 3, "dropout": 0.1, "reversible": True, "feed_forward_chunk": 150}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("stage", "micro_batch"),
    [
        (3, 1),
        *(
            pytest.param(stage, micro, marks=pytest.mark.slow)
            for stage, micro in [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)]
        ),
    ],
    ids=str,
)
def test_two_processes_train_a_reversible_trunk_as_one_does(recipe, tiny_corpus, tmp_path, stage, micro_batch):
    # gradients of the trunk are computed in backward passes inside the backward pass, which ZeRO must not miss
    common = {"model": REVERSIBLE, "masking": {"rate": 0.02}}
    train(recipe(**common, training={"windows_per_micro_batch": 4}), tiny_corpus, tmp_path / "one")
    two = recipe(
        **common,
        training={"windows_per_micro_batch": micro_batch, "loss_chunk": 200},
        engine={"kind": "deepspeed", "zero_stage": stage},
    )
    _run_processes(two, tiny_corpus, tmp_path / "two", num_processes=2)
    one, other = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 1e-5
    assert _norms(tmp_path / "one") == pytest.approx(_norms(tmp_path / "two"), rel=1e-4)


@pytest.mark.processes
# DeepSpeed gathers weights by a name that newer versions of torch call another
@pytest.mark.filterwarnings("ignore:`torch.distributed.*` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("stage", "reversible"),
    # two processes train a reversible trunk by stage 3 in every run
    [(3, False), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, False), (1, True), (3, True)])],
    ids=str,
)
def test_deepspeed_recomputes_as_plain_torch_does(recipe, tiny_corpus, tmp_path, stage, reversible):
    common = {"model": {**REVERSIBLE, "reversible": reversible}, "training": {"loss_chunk": 100}}
    train(recipe(**common), tiny_corpus, tmp_path / "local")
    train(recipe(**common, engine={"kind": "deepspeed", "zero_stage": stage}), tiny_corpus, tmp_path / "deepspeed")
    pairs = zip(_losses(tmp_path / "local"), _losses(tmp_path / "deepspeed"), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-5


DISTRIBUTED = """
import sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from proteinlm.attention import FavorConfig
from proteinlm.model import MaskedLM, ModelConfig

class Objective(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens_BL):
        keys_B = [int(key) for key in tokens_BL[:, 0]]
        return self.model.head(self.model.encode(tokens_BL, dropout_keys_B=keys_B)).square().mean((1, 2)).sum()

def objective():
    sizes = dict(num_layers=3, hidden_size=32, num_heads=2, feed_forward_size=32, dropout=0.1)
    attention = FavorConfig(num_random_features=16)
    config = ModelConfig(attention=attention, reversible=True, feed_forward_chunk=5, **sizes)
    return Objective(MaskedLM(config, seed=2).double().train())

distributed.init_process_group("gloo")
rank = distributed.get_rank()
windows = torch.randint(4, 24, (8, 17), generator=torch.Generator().manual_seed(0))
alone, parted = objective(), DistributedDataParallel(objective())
for _ in range(2):
    alone(windows).backward()
    first, second = windows[4 * rank : 4 * rank + 4].split(2)
    with parted.no_sync():
        parted(first).backward()
    parted(second).backward()
    for one, other in zip(alone.parameters(), parted.parameters()):
        # DistributedDataParallel averages over processes
        assert (one.grad - 2 * other.grad).abs().max() < 1e-10
        one.grad = other.grad = None
distributed.barrier()
distributed.destroy_process_group()
"""


@pytest.mark.processes
@pytest.mark.slow
def test_distributed_data_parallel_reduces_the_gradients_of_a_reversible_trunk(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def _worker(launcher, rank):
    """Return the process of a rank, found among the children of the launcher."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout
    for process in map(int, children.split()):
        if f"RANK={rank}" in Path(f"/proc/{process}/environ").read_text().split("\0"):
            return process
    raise AssertionError(f"no process of rank {rank} among {children!r}")


def _to_the_group(launcher):
    # as a batch system does: to the launcher and to every worker, and the launcher passes it on
    os.killpg(launcher.pid, signal.SIGTERM)


def _to_one(rank, number):
    def send(launcher):
        os.kill(_worker(launcher, rank), number)

    return send


@pytest.mark.processes
@pytest.mark.parametrize(
    "send",
    [
        _to_the_group,
        _to_one(1, signal.SIGHUP),
        pytest.param(_to_one(0, signal.SIGINT), marks=pytest.mark.slow),
        pytest.param(_to_one(1, signal.SIGTERM), marks=pytest.mark.slow),
    ],
    ids=["SIGTERM to all", "SIGHUP to the second", "SIGINT to the first", "SIGTERM to the second"],
)
def test_signal_to_processes_of_a_launcher_saves_and_ends_all(recipe, tiny_corpus, tmp_path, send):
    settings = recipe(
        engine={"kind": "deepspeed"},
        schedule={"num_steps": 400, "warmup_steps": 2},
        training={"windows_per_micro_batch": 1, "checkpoint_interval": 400},
        validation={"interval": 400},
    )
    launched = _launch(settings, tiny_corpus, tmp_path / "run", num_processes=2)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 5):
        assert launched.poll() is None, launched.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    send(launched)
    launched.communicate(timeout=120)
    progress = read_progress(tmp_path / "run" / "training_state")["progress"]
    assert 0 < progress["step"] < 400
    assert load_checkpoint(tmp_path / "run").step == progress["step"]


@pytest.mark.processes
def test_deepspeed_in_one_process_equals_plain_torch(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "local")
    train(recipe(engine={"kind": "deepspeed"}), tiny_corpus, tmp_path / "deepspeed")
    pairs = zip(_losses(tmp_path / "local"), _losses(tmp_path / "deepspeed"), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 1e-5


@pytest.mark.processes
def test_bfloat16_run_exports_float32_master_weights(recipe, tiny_corpus, tmp_path):
    train(recipe(engine={"kind": "deepspeed", "precision": "bfloat16"}), tiny_corpus, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    rounded = all(torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())
    assert not rounded


def test_clipping_and_overflow_check_are_always_written():
    settings = deepspeed_settings(
        EngineConfig(precision="bfloat16"),
        OptimiserConfig(gradient_clipping=0.5),
        micro_batch=2,
        accumulation=3,
        extra={},
    )
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True, "check_grad_overflow": True}


def test_users_json_is_kept_where_the_recipe_decides_nothing():
    extra = {"zero_optimization": {"overlap_comm": False}, "wall_clock_breakdown": True}
    settings = deepspeed_settings(
        EngineConfig(zero_stage=2), OptimiserConfig(), micro_batch=1, accumulation=1, extra=extra
    )
    assert settings["zero_optimization"] == {"overlap_comm": False, "stage": 2}
    assert settings["wall_clock_breakdown"] is True


def _settings_of(extra):
    return deepspeed_settings(
        EngineConfig(precision="bfloat16"), OptimiserConfig(), micro_batch=1, accumulation=1, extra=extra
    )


def _written_paths():
    """Return the path of every setting that a run writes, but for how often DeepSpeed prints."""
    written = {name: value for name, value in _settings_of({}).items() if name != "steps_per_print"}
    inner = {name: [f"{name}.{key}" for key in value] for name, value in written.items() if isinstance(value, dict)}
    return [path for name in written for path in inner.get(name, [name])]


DECIDED_BY = {
    "train_batch_size": "training.windows_per_step",
    "gradient_clipping": "optimiser.gradient_clipping",
    "optimizer": "[optimiser]",
    "scheduler": "[schedule]",
    "zero_optimization.stage": "engine.zero_stage",
    "bf16.enabled": "engine.precision",
    "bf16.check_grad_overflow": "engine.precision",
    "bfloat16": "engine.precision",
    "fp16.enabled": "engine.precision",
    "torch_autocast": "engine.precision",
}


@pytest.mark.parametrize("path", sorted({*_written_paths(), *DECIDED_BY}))
def test_users_json_may_not_set_what_the_recipe_decides(path):
    value = True
    for step in reversed(path.split(".")):
        value = {step: value}
    with pytest.raises(ConfigError) as caught:
        _settings_of(value)
    start = f"engine.deepspeed_config: sets '{path}', which the recipe decides by {DECIDED_BY.get(path, '')}"
    assert str(caught.value).startswith(start)


def test_every_fault_of_a_users_json_is_named_at_once():
    extra = {"zero_optimization": True, "fp16": {"enabled": True, "loss_scale": 0}, "bf16": {"enabled": False}}
    with pytest.raises(ConfigError) as caught:
        _settings_of(extra)
    assert [line.partition("; ")[0] for line in str(caught.value).splitlines()] == [
        "engine.deepspeed_config: 'zero_optimization' is true",
        "engine.deepspeed_config: sets 'bf16.enabled', which the recipe decides by engine.precision",
        "engine.deepspeed_config: sets 'fp16.enabled', which the recipe decides by engine.precision",
    ]


def test_local_engine_refuses_what_it_cannot_do(recipe, tiny_corpus, tmp_path):
    with pytest.raises(ConfigError, match=r"engine\.kind is 'local' with 1 processes and bfloat16"):
        train(recipe(engine={"kind": "local", "precision": "bfloat16"}), tiny_corpus, tmp_path / "run")


def test_half_precision_without_zero_is_refused():
    with pytest.raises(ValueError, match="zero_stage is 0 with bfloat16"):
        EngineConfig(zero_stage=0, precision="bfloat16")


@pytest.mark.processes
def test_bfloat16_losses_follow_those_of_float32(recipe, tiny_corpus, tmp_path):
    train(recipe(), tiny_corpus, tmp_path / "float32")
    train(recipe(engine={"kind": "deepspeed", "precision": "bfloat16"}), tiny_corpus, tmp_path / "bfloat16")
    # eight bits of a mantissa: logits of order 1 are rounded by up to 2^-8
    pairs = zip(_losses(tmp_path / "float32"), _losses(tmp_path / "bfloat16"), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 0.02


@pytest.mark.processes
def test_what_deepspeed_refuses_is_an_error_with_a_reason(recipe, tiny_corpus, tmp_path):
    (tmp_path / "deepspeed.json").write_text('{"zero_optimization": {"reduce_bucket_size": "many"}}')
    engine = {"kind": "deepspeed", "deepspeed_config": str(tmp_path / "deepspeed.json")}
    with pytest.raises(ConfigError, match=r"engine: DeepSpeed refuses these settings here(?s:.)*reduce_bucket_size"):
        train(recipe(engine=engine), tiny_corpus, tmp_path / "run")
