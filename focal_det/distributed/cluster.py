"""The rank of this process among those of a training that torchrun or SLURM started, read from their variables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..errors import InputError

# MASTER_* alone is only an address, which SLURM's scripts often set.
_PROCESS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_TORCHRUN_VARIABLES = (*_PROCESS_VARIABLES, "MASTER_ADDR", "MASTER_PORT")
_SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID")
# From here on SLURM numbers what srun did not start: a batch script, salloc's interactive shell and the like.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0
_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that Linux hands out by itself
_MAX_PROCESSES = 131_072  # keys that PyTorch's store looks for at once, one for each process


@dataclass(frozen=True)
class ClusterEnvironment:
    """One of several processes of a training that something else started."""

    rank: int  # among all processes
    world_size: int  # all processes
    local_rank: int  # among those of this machine
    processes_per_machine: int
    host: str  # where rank 0 is found, at `port`
    port: int
    started_by: str  # "torchrun" or "SLURM"
    store_is_there: bool = False  # torchrun itself answers at host and port, so that rank 0 need not


def cluster_environment(environ: Mapping[str, str]) -> ClusterEnvironment | None:
    """Read torchrun's variables, or else those of a step of SLURM; the inner of the two wins, which is torchrun.

    SLURM sets SLURM_NTASKS in the shell of salloc and in a batch script too, where one process is started and no more.
    Only srun makes a step, with SLURM_STEP_ID and a SLURM_PROCID of each task, so both are required; the numbers that
    SLURM gives to batch scripts and interactive shells as steps don't count.

    Returns None if this is the only process. Raises InputError for variables that are missing, not numbers, or
    contradict each other, and for machines with different numbers of processes.
    """
    if any(name in environ for name in _PROCESS_VARIABLES):
        return _of_torchrun(environ)
    is_step = all(name in environ for name in ("SLURM_PROCID", "SLURM_STEP_ID"))
    if is_step and _number(environ, "SLURM_STEP_ID") < _FIRST_SPECIAL_STEP:
        return _of_slurm(environ)
    return None


def _of_torchrun(environ: Mapping[str, str]) -> ClusterEnvironment | None:
    if environ.get("WORLD_SIZE") and _number(environ, "WORLD_SIZE") == 1:  # as containers set it too, without the rest
        return None
    if missing := [name for name in _TORCHRUN_VARIABLES if not environ.get(name)]:
        there = [name for name in _PROCESS_VARIABLES if name in environ]
        raise InputError(
            f"the environment has {', '.join(there)} but not {', '.join(missing)}: start train_net.py with torchrun, "
            f"which sets all of them, or as one process by `env {' '.join(f'-u {name}' for name in there)} python ...`"
        )
    rank, world_size, local_rank, per_machine = (_number(environ, name) for name in _PROCESS_VARIABLES)
    host, port = environ["MASTER_ADDR"], _number(environ, "MASTER_PORT")
    is_there = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    cluster = ClusterEnvironment(rank, world_size, local_rank, per_machine, host, port, "torchrun", is_there)
    return _checked(cluster, _PROCESS_VARIABLES, "use the same --nproc-per-node on all machines")


def _of_slurm(environ: Mapping[str, str]) -> ClusterEnvironment | None:
    of_size = next((name for name in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if name in environ), "SLURM_NTASKS")
    if missing := [name for name in (*_SLURM_VARIABLES, of_size) if not environ.get(name)]:
        raise InputError(
            f"this is a step of SLURM, but {', '.join(missing)} is not set: start train_net.py with srun, or as one "
            "process by `env -u SLURM_STEP_ID python ...`"
        )
    world_size = _number(environ, of_size)
    if world_size == 1:
        return None
    of_machines, counts = _tasks_of_machines(environ)
    if len(set(counts)) > 1:
        raise InputError(
            f"{of_machines} is {environ[of_machines]!r}: machines with different numbers of processes; give each the "
            "same with srun --ntasks-per-node"
        )
    if len(counts) > 1 and sum(counts) != world_size:
        raise InputError(f"{of_machines} is {environ[of_machines]!r}, but {of_size} is {world_size}: start with srun")
    rank, local_rank = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_LOCALID")
    per_machine, host = counts[0] if counts else world_size, _host(environ)
    cluster = ClusterEnvironment(rank, world_size, local_rank, per_machine, host, _port(environ), "SLURM")
    names = ("SLURM_PROCID", of_size, "SLURM_LOCALID", of_machines)
    fix = "give each machine the same number with srun --ntasks-per-node and --distribution=block"
    return _checked(cluster, names, fix)


def _tasks_of_machines(environ: Mapping[str, str]) -> tuple[str, list[int]]:
    """Return the variable that says it, and the tasks of each machine, or of one where all have the same."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):  # such as "2(x3),1"
        if name in environ:
            parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in environ[name].split(",")]
            if not all(parts):
                raise InputError(f'{name} is {environ[name]!r}, which is not of the form "2(x3),1": start with srun')
            return name, [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]
    name = "SLURM_NTASKS_PER_NODE"
    return name, [_number(environ, name)] if environ.get(name) else []


def _host(environ: Mapping[str, str]) -> str:
    """Return rank 0's: the user's, else the first machine of the step or job, else where srun was called."""
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environ.get(name):
            return first_host(environ[name])
    if environ.get("SLURM_LAUNCH_NODE_IPADDR"):
        return environ["SLURM_LAUNCH_NODE_IPADDR"]
    raise InputError("SLURM does not say where rank 0 is (no SLURM_STEP_NODELIST): set MASTER_ADDR to its host")


def first_host(nodes: str) -> str:
    """Return the first of SLURM's list of machines: of "node[01-04,07],gpu1" node01."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)


def _port(environ: Mapping[str, str]) -> int:
    """Return the user's, else the same in every task of a step, another in the next, and most likely in another job."""
    if environ.get("MASTER_PORT"):
        return _number(environ, "MASTER_PORT")
    job = _number(environ, "SLURM_JOB_ID") if environ.get("SLURM_JOB_ID") else 0
    return _FIRST_PORT + (31 * job + _number(environ, "SLURM_STEP_ID")) % _PORTS


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ[name]
    if not re.fullmatch(r"\d{1,10}", value):
        raise InputError(f"the environment's {name} is {value!r}, which is not a number; start with torchrun or srun")
    return int(value)


def _checked(cluster: ClusterEnvironment, names: tuple[str, str, str, str], fix: str) -> ClusterEnvironment:
    """Return it if its numbers fit; `names` are the variables of rank, size, local rank and ranks per machine."""
    count = cluster.processes_per_machine
    numbers = (cluster.rank, cluster.world_size, cluster.local_rank, count)
    values = ", ".join(f"{name} is {value}" for name, value in zip(names, numbers, strict=True))
    if not 0 < cluster.port < 65536:
        raise InputError(f"MASTER_PORT is {cluster.port}; ports go from 1 to 65535")
    if cluster.world_size > _MAX_PROCESSES:
        raise InputError(f"{names[1]} is {cluster.world_size}; PyTorch connects at most {_MAX_PROCESSES} processes")
    if cluster.rank >= cluster.world_size or count < 1 or cluster.local_rank >= count:
        raise InputError(f"the environment contradicts itself: {values}; start with torchrun or srun")
    if cluster.world_size % count or cluster.rank % count != cluster.local_rank:
        raise InputError(f"ranks must follow each other on machines of equally many processes, but {values}: {fix}")
    return cluster


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model without its wrapper for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
