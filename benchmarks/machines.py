"""Start, disturb and end trainings of several processes and of two "machines", and record who says what, and when.

    sudo python benchmarks/machines.py --json benchmarks/results/machines.json          # all rows, about 15 minutes
    sudo python benchmarks/machines.py --only launcher-2-sigkill-rank-0 --json output/one.json

Each row starts the real train_net.py: by its launcher, by torchrun, or by `srun_stand_in.py` with SLURM's variables. A
machine is a network namespace with a host name, /etc/hosts and addresses of its own; two of them are joined by a pair
of virtual interfaces, eth0, which can be cut, and each also has docker0, with the same address on both, which leads
nowhere. So nothing here meets the machine's own network, and root is needed. Linux alone; the model is tiny, on the
processor, over gloo.

The system's own account (its process connector) gives the exit code of every rank and when it ended. After a row, one
process resumes from what it left, with `--resume auto`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focal_det.environment import source_version, whole_machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from forked import Prepared  # noqa: E402

PERIOD = 10  # steps between checkpoints
SETTINGS = [
    *("--config-file", "configs/quickstart.yaml", "--plugin", "benchmarks/raising_rank.py"),
    *("DATASETS.TRAIN", "shapes_train_16_64px", "DATASETS.TEST", "shapes_val_4_64px"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.IMS_PER_BATCH", "4"),
    *("MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FOCAL_DET.DRAW_IMAGES", "0"),
    *("SOLVER.BASE_LR", "0.001", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "2", "SEED", "7"),
    *("SOLVER.CHECKPOINT_PERIOD", str(PERIOD), "SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0"),
    *("DATALOADER.ASPECT_RATIO_GROUPING", "False"),  # so that one process may resume what several began
]
LONGEST = 200.0  # seconds after which a row that has not ended is ended here
ENDED: dict[int, tuple[int | None, float]] = {}  # of every process by its id: its exit code and when it ended
PROC_EXIT = 0x80000000  # as the kernel calls it


def account_for_exits() -> None:
    """Let a thread keep in `ENDED` how every process of this system ends, as the kernel tells it."""
    kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11)  # NETLINK_CONNECTOR
    kernel.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
    kernel.bind((os.getpid(), 1))  # CN_IDX_PROC
    listen = struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, 1)
    kernel.send(struct.pack("=IHHII", 16 + len(listen), 3, 0, 0, os.getpid()) + listen)

    def read() -> None:
        while True:
            try:
                message = kernel.recv(4096)
            except OSError:  # some were lost, of which `has_ended` learns otherwise
                continue
            if struct.unpack_from("=I", message, 36)[0] == PROC_EXIT:
                thread, process, status = struct.unpack_from("=III", message, 52)
                if thread == process:
                    ENDED[process] = os.waitstatus_to_exitcode(status & 0xFF7F), time.monotonic()

    threading.Thread(target=read, daemon=True).start()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def network(name: str, machines: int, *, own_is_local: bool) -> Iterator[list[str]]:
    """Make the machines of a row; yield their namespaces, whose cables are gone at the end."""
    spaces = [f"{name}{number}" for number in range(machines)]
    try:
        for number, space in enumerate(spaces):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "add", "docker0", "type", "veth", "peer", "name", "container0")
            ip("-n", space, "addr", "add", "172.17.0.1/16", "dev", "docker0")
            for end in ("docker0", "container0"):
                ip("-n", space, "link", "set", end, "up")
            etc = Path("/etc/netns", space)
            etc.mkdir(parents=True, exist_ok=True)
            addresses = [f"10.77.0.{other + 1}" for other in range(2)]
            if machines == 1 or own_is_local:  # as Debian sets it up
                addresses[number] = "127.0.1.1"
            names = [f"{address} machine{other}\n" for other, address in enumerate(addresses)]
            (etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        if machines == 2:
            ip("-n", spaces[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", spaces[1])
            for number, space in enumerate(spaces):
                ip("-n", space, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
                ip("-n", space, "link", "set", "eth0", "up")
        yield spaces
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns", space), ignore_errors=True)


def on(space: str, number: int | str) -> list[str]:
    """Return the words before a command that run it on that machine, as the same process."""
    set_name = f'echo machine{number} >/proc/sys/kernel/hostname; exec "$@"'
    return ["ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c", set_name, "sh"]


@dataclass
class Row:
    """A start by one starter, a disturbance, and what is to be measured.

    `disturb` gets the running `Job` and returns from when on the seconds count; None is the start itself.
    """

    name: str
    starter: str  # "launcher", "torchrun", "srun" or "srun -K", which is --kill-on-bad-exit=1
    ranks: int
    machines: int
    disturb: Callable[[Job], float] | None
    steps: int = 100_000
    flags: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    own_is_local: bool = False  # whether each machine's name means 127.0.1.1 on it
    missing: int | None = None  # machine that never starts, or task of srun on one machine
    waits: bool = False  # mostly waits, so that several such rows run at once


class Job:
    """A running row: its starters, one a machine (of srun one in all), and the ranks under them."""

    def __init__(self, row: Row, spaces: list[str], folder: Path) -> None:
        self.row, self.spaces, self.folder = row, spaces, folder
        self.pids: dict[int, int] = {}  # of the ranks
        self.per_machine = row.ranks // row.machines
        self.began = time.monotonic()
        self.starters = [
            self._start(number)
            for number in range(1 if row.starter.startswith("srun") else row.machines)
            if row.machines == 1 or number != row.missing
        ]

    def _start(self, machine: int) -> subprocess.Popen[bytes]:
        row, per, python = self.row, str(self.per_machine), [sys.executable]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **row.env}
        words = ["train_net.py", *SETTINGS, "SOLVER.MAX_ITER", str(row.steps), "OUTPUT_DIR", str(self.folder / "run")]
        words += ["--resume", "auto", *row.flags]
        before = on(self.spaces[machine], machine)
        if row.starter == "launcher":
            words += ["--num-gpus", per]
            if row.machines > 1:
                words += ["--num-machines", "2", "--machine-rank", str(machine), "--dist-url", "tcp://machine0:29500"]
            command = [*before, *python, *words]
        elif row.starter == "torchrun":
            meet = ["--standalone"]
            if row.machines > 1:
                meet = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "machine0:29400"]
                meet += [] if row.missing is None else ["--rdzv-conf", "join_timeout=15"]  # instead of 600 s
            command = [*before, *python, "-m", "torch.distributed.run", "--nproc-per-node", per, *meet, *words]
        else:
            command = [*python, "benchmarks/srun_stand_in.py", "--ntasks", str(row.ranks), "--nodes", str(row.machines)]
            command += ["--kill-on-bad-exit", "1" if row.starter == "srun -K" else "0"]
            command += ["--output", str(self.folder / "%N.out")]
            enter = shlex.join(on(self.spaces[0][:-1] + "{}", "{}"))
            missing = self.per_machine * (row.missing or 0) if row.machines > 1 else row.missing
            command += ["--never-starts", str(-1 if row.missing is None else missing)]
            command += ["--enter", enter, "--", *python, *words]
        with (self.folder / f"machine{machine}.out").open("ab") as out:
            return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)

    def see(self) -> None:
        """Note the ranks that have been started."""
        for number, starter in enumerate(self.starters):
            machine = number if self.row.missing is None or len(self.spaces) == 1 else 1 - (self.row.missing or 0)
            spawned = self.row.starter == "launcher"
            for place, pid in enumerate(ranks_under(starter.pid, b"spawn_main" if spawned else b"train_net.py")):
                rank = self.per_machine * machine + place if spawned else rank_in(pid)
                if rank is not None:
                    self.pids.setdefault(rank, pid)

    def output(self) -> list[str]:
        """Return what each machine has printed."""
        files = sorted(self.folder.glob("machine*.out"))
        return [file.read_text(errors="replace").replace(f"{ROOT}/", "") for file in files]

    def until(self, holds: Callable[[], bool], seconds: float = 120) -> bool:
        """Wait until something holds, the job has ended, or too long; say whether it holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline or self.has_ended():
                return False
            self.see()
            time.sleep(0.02)
        return True

    def has_ended(self) -> bool:
        """Whether all starters and all ranks have."""
        for pid in (*self.pids.values(), *(starter.pid for starter in self.starters if starter.poll() is not None)):
            if pid not in ENDED and not Path(f"/proc/{pid}").exists():
                time.sleep(0.2)
                ENDED.setdefault(pid, (None, time.monotonic()))
        return all(s.poll() is not None for s in self.starters) and all(pid in ENDED for pid in self.pids.values())

    def train(self) -> None:
        """Wait until it trains and has a checkpoint."""
        self.until(lambda: (self.folder / "run/last_checkpoint").is_file())
        time.sleep(0.3)

    def kill(self, number: int, *, ranks: list[int] | None = None, starters: bool = False) -> None:
        """Send a signal to ranks, to all of them if none are named, and perhaps to the starters after them."""
        self.see()
        pids = [self.pids[rank] for rank in sorted(self.pids) if ranks is None or rank in ranks]
        for pid in (*pids, *(starter.pid for starter in self.starters if starters and starter.poll() is None)):
            if pid not in ENDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self) -> None:
        """Kill what is left."""
        left = [pid for starter in self.starters for pid in descendants(starter.pid)]
        for pid in {*left, *self.pids.values(), *(starter.pid for starter in self.starters)}:
            if pid not in ENDED:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for starter in self.starters:
            starter.wait(10)


def children(pid: int) -> list[int]:
    """Return the children of a process, in the order of their ids."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return sorted(found)


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def ranks_under(pid: int, word: bytes) -> list[int]:
    """Return the children of a process that have the word in their command line."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def rank_in(pid: int) -> int | None:
    """Return the rank that a process's environment names."""
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        if found := re.search(rb"(?:^|\0)(?:RANK|SLURM_PROCID)=(\d+)", variables):
            return int(found[1])
    return None


# --- disturbances: each returns when the seconds begin ----------------------------------------------------------------


def signalled(number: int, *, ranks: list[int] | None = None, starters: bool = False, to_ranks: bool = True) -> Any:
    def disturb(job: Job) -> float:
        job.train()
        began = time.monotonic()
        job.kill(number, ranks=ranks if to_ranks else [], starters=starters)
        return began

    return disturb


def signalled_again(job: Job) -> float:
    """SIGTERM to rank 1; and, once all is saved, to all ranks that are left, again and again."""
    job.train()
    began = time.monotonic()
    job.kill(signal.SIGTERM, ranks=[1])
    job.until(lambda: any("all saved" in text for text in job.output()))
    while not job.has_ended() and time.monotonic() < began + LONGEST:
        job.kill(signal.SIGTERM)
        time.sleep(0.1)
    return began


def suspended(seconds: float, *, ranks: list[int] | None = None) -> Callable[[Job], float]:
    def disturb(job: Job) -> float:
        job.train()
        job.kill(signal.SIGSTOP, ranks=ranks, starters=ranks is None)
        time.sleep(seconds)
        job.kill(signal.SIGCONT, ranks=ranks, starters=ranks is None)
        return time.monotonic()

    return disturb


def cut(seconds: float | None = None) -> Callable[[Job], float]:
    def disturb(job: Job) -> float:
        job.train()
        began = time.monotonic()
        ip("-n", job.spaces[1], "link", "set", "eth0", "down")
        if seconds is not None:
            time.sleep(seconds)
            ip("-n", job.spaces[1], "link", "set", "eth0", "up")
        return began

    return disturb


def starter_killed(job: Job) -> float:
    job.train()
    began = time.monotonic()
    os.kill(job.starters[1].pid, signal.SIGKILL)
    return began


# --- the rows ---------------------------------------------------------------------------------------------------------

SHORT, LONG = PERIOD + 2, 40  # steps of a row that ends by itself, undisturbed and disturbed
STARTERS = ("launcher", "torchrun", "srun")
WITH_K = (*STARTERS, "srun -K")


def rows() -> list[Row]:
    """Return all rows, those that mostly wait last."""
    table: list[Row] = []

    def add(what: str, starters: tuple[str, ...], ranks: int, machines: int, disturb: Any, **more: Any) -> None:
        for starter in starters:
            place = f"{ranks}" if machines == 1 else f"{machines}x{ranks // machines}"
            name = f"{starter.replace(' ', '')}-{place}-{what}"
            table.append(Row(name, starter, ranks, machines, disturb, **more))

    term, kill = signal.SIGTERM, signal.SIGKILL
    for ranks in (2, 4):
        add("undisturbed", STARTERS, ranks, 1, None, steps=SHORT)
    add("sigkill-rank-0", WITH_K, 2, 1, signalled(kill, ranks=[0]))
    add("sigkill-rank-2", WITH_K, 4, 1, signalled(kill, ranks=[2]))
    add("sigterm-rank-1", WITH_K, 2, 1, signalled(term, ranks=[1]))
    add("sigterm-all", ("launcher", "torchrun"), 2, 1, signalled(term, starters=True))
    add("sigterm-all", ("srun", "srun -K"), 2, 1, signalled(term))  # as scancel does
    add("sigterm-starter", WITH_K, 2, 1, signalled(term, starters=True, to_ranks=False))
    add("sigterm-again-while-leaving", STARTERS, 2, 1, signalled_again)
    add("raises-rank-1", WITH_K, 2, 1, None, env={"RAISING_RANK": "1"})
    add("stopped-5s-rank-1", STARTERS, 2, 1, suspended(5, ranks=[1]), steps=LONG)
    hang = ("--hang-timeout", "6")
    add("suspended-job-9s-hang-timeout-6s", STARTERS, 2, 1, suspended(9), steps=LONG, flags=hang)
    soon = ("--start-timeout", "10")
    add("rank-1-never-comes", ("srun",), 2, 1, None, missing=1, flags=soon)
    add("undisturbed", STARTERS, 2, 2, None, steps=SHORT)
    add("undisturbed", ("launcher",), 4, 2, None, steps=SHORT)
    add("sigkill-rank-0", WITH_K, 2, 2, signalled(kill, ranks=[0]))
    add("sigkill-rank-1", WITH_K, 2, 2, signalled(kill, ranks=[1]))
    add("sigterm-rank-1", WITH_K, 2, 2, signalled(term, ranks=[1]))
    add("sigterm-starters", STARTERS, 2, 2, signalled(term, starters=True, to_ranks=False))
    add("starter-of-machine-1-killed", ("launcher", "torchrun"), 2, 2, starter_killed)
    add("machine-1-never-comes", STARTERS, 2, 2, None, missing=1, flags=soon)
    add("machine-0-never-comes", ("launcher", "srun"), 2, 2, None, missing=0, flags=soon)
    add("cut-for-5s", ("launcher",), 2, 2, cut(5), steps=LONG)
    add("interface-nonexistent", STARTERS, 2, 2, None, env={"GLOO_SOCKET_IFNAME": "eth7"}, flags=soon)
    leads_nowhere = {"GLOO_SOCKET_IFNAME": "docker0"}
    add("interface-leads-nowhere", STARTERS, 2, 2, None, env=leads_nowhere, flags=soon, waits=True)
    add("own-name-is-127.0.1.1", STARTERS, 2, 2, None, own_is_local=True, steps=SHORT, flags=soon, waits=True)
    add("cut", STARTERS, 2, 2, cut(), waits=True)
    return table


# --- what is measured -------------------------------------------------------------------------------------------------

SAID = re.compile(r"^(srun: )?error: .*|SIG[A-Z0-9]+: .*(saved|trained|nothing to save).*")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def said(text: str) -> dict[str, int]:
    """Return the lines that say how it ended, each with how often it stands there."""
    found: Counter[str] = Counter()
    for line in COLOURS.sub("", text).splitlines():
        if found_in := SAID.search(line):
            found[found_in[0]] += 1
    return dict(found)


def noise(text: str) -> dict[str, int]:
    """Count the lines of a machine that nobody needs: traces, and what PyTorch's C++ and its warnings print."""
    lines = COLOURS.sub("", text).splitlines()
    kinds = {"traces": r"Traceback", "C++": r"\[?[WEF]\d{4} |\[rank\d+\]:|.*\[[WE]\d{3}", "warnings": r".*Warning: "}
    counts = {kind: sum(bool(re.match(pattern, line)) for line in lines) for kind, pattern in kinds.items()}
    return {kind: count for kind, count in counts.items() if count}


def resumed(prepared: Prepared, row: Row, folder: Path) -> str:
    """Resume in one process for two steps, or start anew; say from where, or why not."""
    if not (folder / "run").exists():
        return "nothing begun"
    pointer = folder / "run/last_checkpoint"
    last = re.search(r"\d+", pointer.read_text()) if pointer.is_file() else None
    steps = int(last[0]) + 3 if last else row.steps if pointer.is_file() else 3 * PERIOD  # a final one has all steps
    words = [*SETTINGS, "--resume", "auto", "SOLVER.MAX_ITER", str(steps), "OUTPUT_DIR", str(folder / "run")]
    done = prepared.run(*words, stderr=subprocess.STDOUT, timeout=120)
    if done.returncode:
        return f"no: {done.returncode}, {' '.join(done.stdout[-300:].split())}"
    begun = re.findall(r"Starting training from iteration (\d+)", done.stdout)
    finished = "is finished" in done.stdout
    return "yes, it was finished" if finished else f"yes, from iteration {begun[-1]}" if begun else "yes, anew"


def measure(row: Row, number: int, folder: Path) -> dict[str, Any]:
    """Run a row to its end."""
    folder.mkdir(parents=True)
    with network(f"focaldet{number}m", row.machines, own_is_local=row.own_is_local) as spaces:
        job = Job(row, spaces, folder)
        try:
            since = row.disturb(job) if row.disturb else job.began
            in_time = job.until(job.has_ended, LONGEST) or job.has_ended()
            time.sleep(0.1)
            ends = [ENDED[pid] for pid in job.pids.values() if pid in ENDED]
            ends += [ENDED[starter.pid] for starter in job.starters if starter.pid in ENDED]
            codes = {rank: ENDED[pid][0] if pid in ENDED else None for rank, pid in sorted(job.pids.items())}
            starters = [starter.poll() for starter in job.starters]
        finally:
            job.end()
    texts = job.output()
    return {
        "row": row.name,
        "seconds": round(max(at for _, at in ends) - since, 1) if in_time else f"not within {LONGEST:g}",
        "from": "disturbance" if row.disturb else "start",
        "exit codes of ranks": codes,
        "exit codes of starters": starters,
        "said": [said(text) for text in texts],
        "noise": [noise(text) for text in texts],
        "flags": list(row.flags),
        "environment": row.env,
    }


def as_table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the rows."""
    lines = ["| row | s | ranks' codes | starter's | `--resume auto` | said, a machine |", "|---|--:|---|---|---|---|"]
    for one in results:
        codes = ", ".join(f"{rank}: {code}" for rank, code in one["exit codes of ranks"].items()) or "none started"
        words = []
        for machine, lines_of_it in enumerate(one["said"]):
            texts = [f"{count} x `{line[:230]}`" for line, count in lines_of_it.items()]
            texts += [f"{count} {kind}" for kind, count in one["noise"][machine].items()]
            words.append((f"**{machine}** " if len(one["said"]) > 1 else "") + ("; ".join(texts) or "nothing"))
        cells = [one["row"], one["seconds"], codes, ", ".join(map(str, one["exit codes of starters"])), one["resumed"]]
        lines.append("| " + " | ".join([*(str(cell) for cell in cells), " ".join(words).replace("|", "/")]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="rows whose names contain it; others stay as they are",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--folder", type=Path, default=Path("output/machines"), help="of the runs; emptied")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    text = "rows at once; those that mostly wait come last, five at once"
    parser.add_argument("--jobs", type=int, default=2, help=f"{text} (default %(default)s)")
    parser.add_argument("--json", type=Path, help="file of the results; the table is written beside it, as .md")
    args = parser.parse_args()
    chosen = [row for row in rows() if not args.only or any(word in row.name for word in args.only)]
    if args.list or not args.json:
        print("\n".join(row.name for row in chosen))
        return 0
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["DETECTRON2_DATASETS"] = str(folder / "datasets")
    os.environ["OMP_NUM_THREADS"] = "1"
    account_for_exits()
    prepared = Prepared()
    prepared.run(*SETTINGS, "OUTPUT_DIR", folder / "first", "SOLVER.MAX_ITER", "1")  # draws the images, once
    began, results = time.monotonic(), {}
    if args.only and args.json.is_file():
        results = {one["row"]: one for one in json.loads(args.json.read_text())["rows"]}

    one_at_a_time = threading.Lock()

    def run(row: Row) -> None:
        one = measure(row, chosen.index(row), folder / row.name)
        with one_at_a_time:
            one["resumed"] = resumed(prepared, row, folder / row.name)
            results[row.name] = one
            seconds = round(time.monotonic() - began)
            print(as_table([one]).splitlines()[-1], f"[{seconds} s]", flush=True)
            write(args.json, [results[row.name] for row in rows() if row.name in results], seconds)
        if not args.keep:
            shutil.rmtree(folder / row.name)

    for at_once, waits in ((args.jobs, False), (5, True)):
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(run, [row for row in chosen if row.waits == waits]))
    prepared.close()
    return 0


def write(path: Path, results: list[dict[str, Any]], seconds: int) -> None:
    """Write the results so far, and the table beside them."""
    facts = {
        "command": " ".join(["python benchmarks/machines.py", *sys.argv[1:]]),
        "focal_det": source_version(),
        "machine": whole_machine(0),
        "load at the end": round(os.getloadavg()[0], 1),
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "rows": results}, indent=1) + "\n")
    text = "# Several processes and two machines, disturbed\n\n" + "\n".join(f"- {k}: {v}" for k, v in facts.items())
    path.with_suffix(".md").write_text(f"{text}\n\n{as_table(results)}")


if __name__ == "__main__":
    sys.exit(main())
