"""Two processes with one image each make the step of one process with both, over gloo on the CPU."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm
from training_fixtures import NARROW, make_shallow

from focal_det.engine.validation_loss import validation_losses
from focal_det.environment import num_cores

pytestmark = pytest.mark.detectron2


def step(model, batch):
    losses = model(batch)
    sum(losses.values()).backward()
    return {name: loss.detach() for name, loss in losses.items()}


CASES = [(mode, counts) for mode in ("global", "image") for counts in ((4, 3), (0, 5), (5, 0), (0, 0))]


def worker(rank, rendezvous, cases, results):
    """One of two ranks: the same weights, one image of each case's batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    states = []
    for cfg, batch in cases:
        torch.manual_seed(0)
        model = create_ddp_model(build_model(cfg), broadcast_buffers=False, device_ids=None)
        losses = step(model, [batch[rank]])
        for loss in losses.values():
            dist.all_reduce(loss)
        states.append(
            {
                "losses": {name: loss / 2 for name, loss in losses.items()},
                "grads": {name: p.grad for name, p in model.module.named_parameters()},
                "num_assigned": model.module.criterion.num_assigned,
                "buffers": dict(model.module.criterion.named_buffers()),
                "validation": validation_losses(model.module, [[batch[rank]]]),
            }
        )
    torch.save(states, f"{results}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def _few_layers():
    with pytest.MonkeyPatch.context() as patch:
        make_shallow(patch)
        yield


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, tiny_cfg, batch_of):
    """Of each case by name its configuration, its batch and, of both ranks, what was seen; all in one start of two."""
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.PIXEL_STD", "[500., 500., 500.]")
    cases = {
        **{(mode, counts): (tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", mode), batch_of(counts)) for mode, counts in CASES},
        "frozen": (tiny_cfg(*frozen), batch_of((4, 3))),
        "ema": (tiny_cfg("MODEL.FOCAL_DET.NORMALIZER", "ema"), batch_of((0, 9))),
    }
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(worker, (folder / "rendezvous", list(cases.values()), folder), nprocs=2, start_method="fork")
    ranks = [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]
    return {name: (*case, *states) for (name, case), *states in zip(cases.items(), *ranks, strict=True)}


def test_two_processes_have_the_losses_of_one_channels_last_too(in_two_processes):
    # Not the gradients: one image is summed in another order than two, and a ReLU next to zero would tell.
    cfg, batch, main, _ = in_two_processes["frozen"]
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.memory_format is torch.channels_last
    for name, loss in step(model, batch).items():
        torch.testing.assert_close(main["losses"][name], loss, rtol=1e-5, atol=1e-8)


def test_two_processes_equal_one(in_two_processes):
    for case in CASES:
        cfg, batch, *ranks = in_two_processes[case]
        torch.manual_seed(0)
        model = build_model(cfg)
        losses = step(model, batch)
        for name, loss in losses.items():
            torch.testing.assert_close(ranks[0]["losses"][name], loss, rtol=1e-5, atol=1e-8)
        validation = validation_losses(model, [[image] for image in batch])
        for rank in ranks:
            assert rank["validation"] == pytest.approx(validation, rel=1e-5, abs=1e-8)
        for name, parameter in model.named_parameters():
            scale = parameter.grad.abs().max().item()
            for rank in ranks:
                grad = rank["grads"][name]
                torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-5 * scale + 1e-9)


def test_the_moving_average_is_the_same_on_all_ranks(in_two_processes):
    *_, first, second = in_two_processes["ema"]
    averages = [rank["buffers"]["normalizer.ema"].item() for rank in (first, second)]
    assert first["num_assigned"].item() == 0
    assigned = second["num_assigned"].item()
    assert assigned > 0
    assert averages == [pytest.approx(0.9 * 100 + 0.1 * (1 + assigned) / 2)] * 2  # none counts as one


LEAVES_AT_ONCE = """
import sys, torch.distributed as dist
from detectron2.utils import comm
from focal_det.distributed.graceful_stop import GracefulStop
from focal_det.distributed.watchdog import RankWatchdog

dist.init_process_group("gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2)
comm.create_local_process_group(2)
with RankWatchdog(0), GracefulStop() as stopping:
    for _ in range(3):
        stopping.agreement.one_call_later(0)
"""


def test_pythons_end_meets_no_thread_of_a_group(tmp_path):
    """With a number still on its way, 22 of 25 pairs of such processes ended by SIGABRT."""
    words = [sys.executable, "-c", LEAVES_AT_ONCE, f"file://{tmp_path}/store"]
    ranks = [subprocess.Popen([*words, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


def small_run(prepared, output, datasets, *words):
    options = [
        *("--config-file", "configs/quickstart.yaml", "--num-gpus", "2"),
        *("DATASETS.TRAIN", "shapes_train_16_64px", "DATASETS.TEST", "shapes_val_4_64px"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "64"),
        *("MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
        *("OUTPUT_DIR", str(output), *NARROW, *words),
    ]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    return prepared.popen(*options, env=environment, stderr=subprocess.STDOUT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="several processes on the CPU are for machines without a GPU")
@pytest.mark.skipif(num_cores() < 2, reason="two processes need two cores")
def test_train_net_in_two_processes_stops_on_a_signal_and_resumes(tmp_path, prepared, wait_for):
    output, datasets = tmp_path / "output", tmp_path / "datasets"
    process = small_run(prepared, output, datasets, "SOLVER.MAX_ITER", "2000", "SOLVER.CHECKPOINT_PERIOD", "10")
    wait_for(output / "last_checkpoint", process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate()
    assert process.returncode == 75, text[-3000:]
    assert "in 2 processes" in text
    stopped_at = int((output / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))

    resumed = small_run(prepared, output, datasets, "SOLVER.MAX_ITER", str(stopped_at + 3), "--resume")
    text, _ = resumed.communicate()
    assert resumed.returncode == 0, text[-3000:]
    assert f"Starting training from iteration {stopped_at + 1}" in text
    assert (output / "detections.png").is_file()
    assert text.count(f"iteration {stopped_at + 3}/{stopped_at + 3} (epoch ") == 1  # of the main process alone
    assert text.count("val/total_loss ") == 1
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert last["val/total_loss"] == pytest.approx(last["val/loss_cls"] + last["val/loss_box_reg"])
