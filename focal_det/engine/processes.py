"""Where this process stands among those of a training that torchrun or SLURM started, as their variables say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_A_PROCESS = _TORCHRUN[:4]  # MASTER_* alone is but an address, which SLURM's scripts often set
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID")
# SLURM's numbers for what is no step of srun: a batch script, salloc's interactive shell and the like.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that Linux hands out by itself

_MOST = 131_072  # keys that PyTorch's store looks for at once, one for each process


@dataclass(frozen=True)
class Place:
    """One of several processes of a training that something else started.

    rank, world_size: among all processes.
    local_rank, processes_per_machine: among those of this machine.
    host, port: where rank 0 is found.
    started_by: "torchrun" or "SLURM".
    store_is_there: torchrun itself answers at host and port, so that rank 0 need not.
    """

    rank: int
    world_size: int
    local_rank: int
    processes_per_machine: int
    host: str
    port: int
    started_by: str
    store_is_there: bool = False


def place_from_environment(environ: Mapping[str, str]) -> Place | None:
    """Read torchrun's variables, or else those of a step of SLURM; the inner of the two wins, which is torchrun.

    SLURM sets SLURM_NTASKS in the shell of salloc and in a batch script too, where one process is started and no more.
    Only srun makes a step, with SLURM_STEP_ID and a SLURM_PROCID of each task, so both are asked for; the numbers that
    SLURM gives to batch scripts and interactive shells as steps don't count.

    Returns:
        None if this is the only process.

    Raises:
        InputError: variables that are missing, no numbers, or contradict each other; machines with different numbers
            of processes.
    """
    if any(name in environ for name in _OF_A_PROCESS):
        place = _of_torchrun(environ)
    elif all(name in environ for name in ("SLURM_PROCID", "SLURM_STEP_ID")) and _is_step(environ):
        place = _of_slurm(environ)
    else:
        return None
    return place if place.world_size > 1 else None


def _of_torchrun(environ: Mapping[str, str]) -> Place:
    if environ.get("WORLD_SIZE") == "1":  # as containers set it too, with less of the rest
        return Place(0, 1, 0, 1, "", 0, "torchrun")
    missing = [name for name in _TORCHRUN if not environ.get(name)]
    if missing:
        there = [name for name in _OF_A_PROCESS if name in environ]
        raise InputError(
            f"the environment has {', '.join(there)} but not {', '.join(missing)}: start train_net.py by torchrun, "
            f"which sets all of them, or as one process by `env {' '.join(f'-u {name}' for name in there)} python ...`"
        )
    number = {name: _number(environ, name) for name in _TORCHRUN if name != "MASTER_ADDR"}
    place = Place(
        rank=number["RANK"],
        world_size=number["WORLD_SIZE"],
        local_rank=number["LOCAL_RANK"],
        processes_per_machine=number["LOCAL_WORLD_SIZE"],
        host=environ["MASTER_ADDR"],
        port=number["MASTER_PORT"],
        started_by="torchrun",
        store_is_there=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    return _consistent(
        place, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "use the same --nproc-per-node on all machines"
    )


def _is_step(environ: Mapping[str, str]) -> bool:
    return _number(environ, "SLURM_STEP_ID") < _FIRST_SPECIAL_STEP


def _of_slurm(environ: Mapping[str, str]) -> Place:
    of_size = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environ), "SLURM_NTASKS")
    missing = [name for name in (*_SLURM, of_size) if not environ.get(name)]
    if missing:
        raise InputError(
            f"this is a step of SLURM, but {', '.join(missing)} is not set: start train_net.py by srun, or as one "
            "process by `env -u SLURM_STEP_ID python ...`"
        )
    if _number(environ, of_size) == 1:
        return Place(0, 1, 0, 1, "", 0, "SLURM")
    of_machines, counts = _tasks_of_machines(environ)
    if len(set(counts)) > 1:
        raise InputError(
            f"{of_machines} is {environ[of_machines]!r}: machines with different numbers of processes; give each the "
            "same with srun --ntasks-per-node"
        )
    world_size = _number(environ, of_size)
    if counts and len(counts) > 1 and sum(counts) != world_size:
        raise InputError(f"{of_machines} is {environ[of_machines]!r}, but {of_size} is {world_size}: start by srun")
    place = Place(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        processes_per_machine=counts[0] if counts else world_size,
        host=_host(environ),
        port=_number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else _port_of_job(environ),
        started_by="SLURM",
    )
    fix = "give each machine the same number with srun --ntasks-per-node and --distribution=block"
    return _consistent(place, "SLURM_PROCID", of_size, "SLURM_LOCALID", of_machines, fix)


def _tasks_of_machines(environ: Mapping[str, str]) -> tuple[str, list[int]]:
    """The variable that says it, and the tasks of each machine, of one alone where all have the same."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):  # such as "2(x3),1"
        if name in environ:
            parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in environ[name].split(",")]
            if not all(parts):
                raise InputError(f'{name} is {environ[name]!r}, which is not of the form "2(x3),1": start by srun')
            return name, [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]
    name = "SLURM_NTASKS_PER_NODE"
    return name, [_number(environ, name)] if environ.get(name) else []


def _host(environ: Mapping[str, str]) -> str:
    """Of rank 0: as the user says, else the first machine of the step or job, else where srun was called."""
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environ.get(name):
            return first_host(environ[name])
    if environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return environ["SLURM_LAUNCH_NODE_IPADDR"]
    raise InputError("SLURM does not say where rank 0 is (no SLURM_STEP_NODELIST): set MASTER_ADDR to its host")


def first_host(nodes: str) -> str:
    """The first of SLURM's list of machines: "node[01-04,07],gpu1" is node01."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)


def _port_of_job(environ: Mapping[str, str]) -> int:
    """The same in every task of a step, another one in the next step and most likely in another job."""
    job = _number(environ, "SLURM_JOB_ID") if environ.get("SLURM_JOB_ID") else 0
    return _FIRST_PORT + (31 * job + _number(environ, "SLURM_STEP_ID")) % _PORTS


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ[name]
    if not re.fullmatch(r"\d{1,10}", value):
        raise InputError(f"the environment's {name} is {value!r}, which is no number; start by torchrun or srun")
    return int(value)


def _consistent(place: Place, rank: str, size: str, local_rank: str, per_machine: str, fix: str) -> Place:
    """The place, if its numbers fit; the words are the names of the variables that they came from."""
    count = place.processes_per_machine
    named = {rank: place.rank, size: place.world_size, local_rank: place.local_rank, per_machine: count}
    values = ", ".join(f"{name} is {value}" for name, value in named.items())
    if not 0 < place.port < 65536:
        raise InputError(f"MASTER_PORT is {place.port}; ports go from 1 to 65535")
    if place.world_size > _MOST:
        raise InputError(f"{size} is {place.world_size}; PyTorch brings at most {_MOST} processes together")
    if place.rank >= place.world_size or count < 1 or place.local_rank >= count:
        raise InputError(f"the environment contradicts itself: {values}; start by torchrun or srun")
    if place.world_size % count or place.rank % count != place.local_rank:
        raise InputError(f"ranks must follow each other on machines of equally many processes, but {values}: {fix}")
    return place
