"""Count what the ranks of a training send each other, and what a rank waits for, in a step and in twenty.

    python benchmarks/collectives.py --ranks 2 4 --json benchmarks/results/collectives.json

Trains a tiny detector by the real `Trainer` in that many processes over gloo, 41 steps: as a processor does it, and as
a GPU does it, which reads its losses every 20 steps. Counted are the calls of the functions of torch.distributed that
move data, with the sums of gradients (one for each bucket) among them, and where a rank stood still: until the others
had come (a collective over the host that is not asynchronous, or the wait for one that is), or until its device had
computed a number (item(), cpu() and the like, of what would be on the device). A collective on the device is sent over
gloo here, and would be queued by NCCL, for which the host does not wait: it is counted under "device".
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import distributed_c10d

ROOT = Path(__file__).parents[1]
STEPS = 41
TWENTY = range(20, 40)  # iterations counted: none is the first or the last
MOVING = ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "gather", "reduce", "barrier")
READING = ("item", "cpu", "tolist", "__bool__", "__int__", "__float__")
# Who looks at numbers of the device; what others read, such as annotations, is on the host.
OF_DEVICE = ("train_loop.py", "train_step.py", "check.py", "hooks.py", "criterion.py", "normalizer.py", "clip_grad.py")
SMALL = {
    **{"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.RESNETS.DEPTH": 18},
    **{"MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.RESNETS.NORM": "GN", "MODEL.FPN.OUT_CHANNELS": 16},
    **{"MODEL.RETINANET.NUM_CONVS": 1, "MODEL.RETINANET.NUM_CLASSES": 3, "SEED": 3, "INPUT.MIN_SIZE_TEST": 64},
    **{"INPUT.MIN_SIZE_TRAIN": "(64,)", "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": STEPS, "SOLVER.STEPS": "()"},
    **{"SOLVER.WARMUP_ITERS": 0, "SOLVER.BASE_LR": 0.001, "SOLVER.CHECKPOINT_PERIOD": 5000, "TEST.EVAL_PERIOD": 0},
    **{"MODEL.FOCAL_DET.DRAW_IMAGES": 0, "MODEL.FOCAL_DET.VAL_LOSS": False},
}
SETS = ("shapes_train_8_64px", "shapes_val_12_64px")


class Count:
    """Counts calls by iteration: (kind, what, who)."""

    def __init__(self) -> None:
        self.iteration, self.events = -1, Counter[tuple[int, str, str, str]]()
        self.silent = False  # within a call that is counted already

    def add(self, kind: str, what: str, who: str) -> None:
        self.events[self.iteration, kind, what, who] += 1

    def of(self, iterations: range) -> list[dict[str, Any]]:
        """Return how often each was called in these iterations."""
        total: Counter[tuple[str, str, str]] = Counter()
        for (iteration, *event), number in self.events.items():
            if iteration in iterations:
                total[tuple(event)] += number  # type: ignore[index]
        return [{"kind": k, "what": w, "who": who, "times": n} for (k, w, who), n in sorted(total.items())]


def caller() -> str:
    """Name the innermost function outside of PyTorch, and of Detectron2's `comm`."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        inner = "torch" in path.parts or path.name in (Path(__file__).name, "comm.py", "contextlib.py")
        if not inner:
            break
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"


def watch_collectives(count: Count) -> None:
    """Count the calls of torch.distributed's functions, also from within those that send objects."""

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(distributed_c10d, name)

        @wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            who, is_async = caller(), bool(options.get("async_op"))
            group = options.get("group")
            # NCCL moves what is on the device: what is sent through the group of all ranks, and is not an object
            objects = any("object" in f for f in _functions(6))
            where = "device" if group in (None, dist.group.WORLD) and not objects and name != "barrier" else "host"
            count.add(f"collective, {where}", name, who)
            if where == "host" and not is_async:
                count.add("host waits for ranks", name, who)
            result = real(*args, **options)
            return Waited(result, count, where, who) if is_async else result

        return call

    for name in MOVING:
        wrapper = counted(name)
        setattr(distributed_c10d, name, wrapper)
        setattr(dist, name, wrapper)


def _functions(depth: int) -> list[str]:
    frame, names = sys._getframe(2), []
    for _ in range(depth):
        names.append(frame.f_code.co_name)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return names


class Waited:
    """A collective that goes on; counts the wait for it."""

    def __init__(self, work: Any, count: Count, where: str, who: str) -> None:
        self._work, self._count, self._where, self._who = work, count, where, who

    def wait(self, *args: Any) -> Any:
        if self._where == "host":
            is_there = "already there" if self._work.is_completed() else "not yet there"
            self._count.add(f"host waits for ranks, {is_there}", "wait", self._who)
        return self._work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def watch_reads(count: Count) -> None:
    """Count where the host reads what a GPU would have."""

    read: dict[int, torch.Tensor] = {}  # by address, which stays theirs as they are kept

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(torch.Tensor, name)

        def call(tensor: torch.Tensor, *args: Any) -> Any:
            who, sends_objects = caller(), sys._getframe(1).f_globals["__name__"] == distributed_c10d.__name__
            address = tensor.untyped_storage().data_ptr()
            if not (count.silent or sends_objects or address in read) and who.startswith(OF_DEVICE):
                count.add("host waits for the device", name, who)
            outer, count.silent = count.silent, True
            try:
                result = real(tensor, *args)
            finally:
                count.silent = outer
            if name == "cpu":  # on a GPU it would be a copy, which is on the host from here on
                result = result.clone()
                read[result.untyped_storage().data_ptr()] = result
            return result

        return call

    for name in READING:
        setattr(torch.Tensor, name, counted(name))


def train(rank: int, ranks: int, port: int, folder: str, as_gpu: bool) -> None:
    """Be one rank; write what was counted to `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    from detectron2.engine.hooks import CallbackHook
    from detectron2.utils import comm

    import focal_det.plugin  # noqa: F401
    from focal_det.config.load import load_config
    from focal_det.data.catalog import prepare_shapes, register_datasets
    from focal_det.distributed.graceful_stop import GracefulStop
    from focal_det.engine import trainer as trainer_module

    comm.create_local_process_group(ranks)
    if rank == 0:
        prepare_shapes(SETS)
    comm.synchronize()
    register_datasets(SETS, [])
    words = [str(word) for pair in SMALL.items() for word in pair]
    cfg = load_config([ROOT / "configs" / "Base-RetinaNet-FPN.yaml"], [*words, "OUTPUT_DIR", folder + "/run"])
    cfg.SOLVER.IMS_PER_BATCH = ranks
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = SETS[:1], SETS[1:]
    cfg.freeze()
    if as_gpu:
        gpus = cfg.clone()
        gpus.defrost()
        gpus.MODEL.DEVICE = "cuda"
        make_step, when_due = trainer_module.make_step, trainer_module.when_due
        trainer_module.make_step = lambda _, *args: make_step(gpus, *args)  # type: ignore[assignment]
        trainer_module.when_due = lambda _: when_due(gpus)  # type: ignore[assignment]
    count = Count()
    with GracefulStop() as stopping:
        trainer = trainer_module.Trainer(cfg, stopping=stopping)
        trainer.resume_or_load(resume=False)
        if isinstance(trainer.model, torch.nn.parallel.DistributedDataParallel):
            trainer.model.register_comm_hook(None, lambda _, bucket: sum_gradients(bucket))
        trainer.register_hooks([CallbackHook(before_step=lambda t: setattr(count, "iteration", t.iter))])
        watch_collectives(count)
        watch_reads(count)
        trainer.train()
    counted = {"twenty": count.of(TWENTY), "one": count.of(range(25, 26)), "due": count.of(range(39, 40))}
    Path(folder, f"{rank}.json").write_text(json.dumps(counted))
    dist.destroy_process_group()


def sum_gradients(bucket: Any) -> Any:
    """Sum a bucket as DDP does, through a function that is counted."""
    work = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def measure(ranks: int, as_gpu: bool) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return what rank 0 and the last rank counted."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        mp.spawn(train, (ranks, port, folder, as_gpu), nprocs=ranks)
        return {f"rank {rank}": json.loads(Path(folder, f"{rank}.json").read_text()) for rank in (0, ranks - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--json", type=Path, help="write all counts there")
    args = parser.parse_args()
    results = {}
    for ranks in args.ranks:
        for as_gpu in (False, True):
            name = f"{ranks} ranks, {'as a GPU does it' if as_gpu else 'a processor'}"
            results[name] = counts = measure(ranks, as_gpu)
            print(f"\n{name}, rank 0, 20 steps / one in between / one with figures due")
            of = {
                part: {(row["kind"], row["what"], row["who"]): row["times"] for row in rows}
                for part, rows in counts["rank 0"].items()
            }
            for event, times in of["twenty"].items():
                print(f"  {times:4} {of['one'].get(event, 0):3} {of['due'].get(event, 0):3}  {', '.join(event)}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
