"""A stand-in for SLURM's srun, for machines.py: starts the tasks of a step, and ends as srun does.

    python benchmarks/srun_stand_in.py --ntasks 4 --nodes 2 --kill-on-bad-exit 1 -- python train_net.py ...

It has srun's rules for signals and ends. SIGTERM to srun goes to all tasks. With --kill-on-bad-exit=1 the first task
that leaves with anything but 0 brings SIGTERM to all others at once, and SIGKILL after KillWait. What srun returns is
the highest exit code of its tasks, where one that a signal ended counts as 128 + its number.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ntasks", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--kill-on-bad-exit", type=int, default=0, choices=(0, 1))
    parser.add_argument("--kill-wait", type=float, default=10, help="KillWait of slurm.conf, where it is 30")
    parser.add_argument("--output", default="", help="file of each node, %%N in it for the node's name")
    parser.add_argument("--enter", default="", help="words that run a command on node {}, such as 'ip netns exec n{}'")
    parser.add_argument("--never-starts", type=int, default=-1, help="a task that does not start")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    per_node = args.ntasks // args.nodes
    job = {
        **{"SLURM_JOB_ID": os.environ.get("SLURM_JOB_ID", "1"), "SLURM_STEP_ID": "0"},
        **{"SLURM_NTASKS": args.ntasks, "SLURM_STEP_NUM_TASKS": args.ntasks},
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{args.nodes})",
        "SLURM_STEP_NODELIST": f"machine[0-{args.nodes - 1}]" if args.nodes > 1 else "machine0",
    }
    tasks: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, lambda number, _: send(tasks, number))
    for rank in range(args.ntasks):
        if rank == args.never_starts:
            continue
        node = rank // per_node
        own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % per_node, "SLURM_NODEID": node}
        environ = {**os.environ, **{name: str(value) for name, value in {**job, **own}.items()}}
        out = open(args.output.replace("%N", f"machine{node}"), "ab") if args.output else None  # noqa: SIM115
        command = [*(word.replace("{}", str(node)) for word in shlex.split(args.enter)), *args.command]
        tasks.append(subprocess.Popen(command, env=environ, stdout=out, stderr=out))
    kill_at = float("inf")
    while any(task.poll() is None for task in tasks):
        if args.kill_on_bad_exit and kill_at == float("inf") and any(task.returncode for task in tasks):
            print("srun: error: a task exited with a non-zero code: terminating the step", file=sys.stderr, flush=True)
            send(tasks, signal.SIGTERM)
            kill_at = time.monotonic() + args.kill_wait
        if time.monotonic() > kill_at:
            send(tasks, signal.SIGKILL)
        time.sleep(0.005)
    return max(128 - task.returncode if task.returncode < 0 else task.returncode for task in tasks)


def send(tasks: list[subprocess.Popen[bytes]], number: int) -> None:
    for task in tasks:
        if task.poll() is None:
            task.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
