"""The processes of a run: what a launcher says of them in the environment, and how they find each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

from torch import distributed
from torch._C._distributed_c10d import HashStore, Store
from torch.distributed.rendezvous import rendezvous

from proteinlm.errors import ConfigError, UnavailableError
from proteinlm.locks import LOCK_FILE, locked
from proteinlm.outputs import parents_made, resolved
from proteinlm.progress import Progress

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# seconds in which processes of one machine find each other, and in which all nodes of a batch system begin
NOTICED_WAIT = 15.0
LONGEST_WAIT = 900.0


@dataclass(frozen=True)
class Launched:
    """This process among those of the run; alone if there is one.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        address: where the first process waits for the others, as host:port; empty if alone.
    """

    rank: int = 0
    world_size: int = 1
    address: str = ""


def launched() -> Launched:
    """Return what the environment says of the processes of this run.

    Raises:
        ConfigError: if that cannot be, as where variables of an earlier launcher are left over.
    """
    world_size = _number("WORLD_SIZE", 1)
    if world_size < 2:
        return Launched()
    missing = [name for name in _NAMES if name not in os.environ]
    if missing:
        raise ConfigError(f"{_environment()}, but {', '.join(missing)} not; {_WAY_OUT}")
    rank = _number("RANK", 0)
    if not 0 <= rank < world_size:
        raise ConfigError(f"{_environment()}: there is no such process; {_WAY_OUT}")
    return Launched(rank, world_size, f"{os.environ['MASTER_ADDR']}:{_number('MASTER_PORT', 0)}")


_WAY_OUT = (
    "to train in several processes start all of them by torchrun or deepspeed, "
    f"to train in one take these variables away: env {' '.join(f'-u {name}' for name in _NAMES)} proteinlm train …"
)


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Keep others from training in a folder for as long as the block lasts; the first process does so for all.

    The folder is made for that, and removed again if the block fails and nothing else is in it.

    Raises:
        InUseError: if another run holds it.
        OutputError: if it cannot be written.
    """
    if launched().rank > 0:
        yield
        return
    place = resolved(folder)
    with parents_made(place / LOCK_FILE), locked(place, folder, "trained"):
        yield


def holds_more_than_a_lock(folder: Path) -> bool:
    """Return whether anything but the lock of a run is in a folder."""
    return any(entry.name != LOCK_FILE for entry in folder.iterdir())


def join(process: Launched, backend: str, report: Progress) -> None:
    """Make the process group of torch, of all processes of the run.

    Raises:
        UnavailableError: if the port is taken, or the others do not come.
    """
    if process.world_size == 1:
        # no port is opened, so that any number of runs share a machine
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return
    try:
        store, rank, world_size = _met(process, report)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    except RuntimeError as error:
        raise UnavailableError(_explained(process, error)) from error


def _met(process: Launched, report: Progress) -> tuple[Store, int, int]:
    """Wait for the other processes, saying so once if it lasts, and return the store that all share."""
    answers: SimpleQueue[tuple[Store, int, int] | RuntimeError] = SimpleQueue()

    def meet() -> None:
        try:
            answers.put(next(rendezvous("env://", timeout=timedelta(seconds=LONGEST_WAIT))))
        except RuntimeError as error:
            answers.put(error)

    # torch waits deaf to signals, so that is not done in the thread that hears of them
    threading.Thread(target=meet, daemon=True).start()
    try:
        answer = answers.get(timeout=NOTICED_WAIT)
    except Empty:
        report.note(
            f"process {process.rank} of {process.world_size} still waits for the others at {process.address}, "
            f"because {_environment()}; {_WAY_OUT}"
        )
        answer = answers.get()
    if isinstance(answer, RuntimeError):
        raise answer
    return answer


def _explained(process: Launched, error: Exception) -> str:
    text = str(error).splitlines()[0]
    if "EADDRINUSE" in text:
        return (
            f"MASTER_PORT is {process.address.rpartition(':')[2]}, a port that another program of this machine uses; "
            "set another for all processes of the run, or let torchrun --standalone find one"
        )
    return f"the {process.world_size} processes do not find each other at {process.address} ({text}); {_WAY_OUT}"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} is '{text}' in the environment; expected a number; {_WAY_OUT}") from error


def _environment() -> str:
    """Return the variables that are set, as the beginning of a sentence."""
    found = [f"{name}={os.environ[name]}" for name in _NAMES if name in os.environ]
    return f"{' '.join(found)} {'is' if len(found) == 1 else 'are'} set in the environment"
