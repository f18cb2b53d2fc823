"""The figures of docs/scaling.md: schedules, parameters, and the bytes that a step sends."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.modeling import build_model

from focal_det.checkpoint.compatibility import build_cpu_model
from focal_det.checkpoint.disk_space import checkpoint_bytes
from focal_det.config.load import load_config
from focal_det.config.schedule import scale_schedule

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text()


def figures(start):
    """The numbers of the page's line that starts so, behind its first cell."""
    line = next(line for line in PAGE.splitlines() if line.startswith(start))
    numbers = re.findall(r"[\d.]+", line.split("|", 2)[2].replace(", ", " ").replace(",", ""))
    return [float(number) for number in numbers]


def config(depth, *overrides):
    file = ROOT / f"configs/retinanet_R_{depth}_FPN_1x.yaml"
    return load_config(file, ["MODEL.RETINANET.NUM_CLASSES", "80", *overrides])


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_the_paper_s_schedule_on_so_many_gpus(gpus):
    cfg = config(50, "SOLVER.IMS_PER_BATCH", str(2 * gpus))
    scale_schedule(cfg, 16, kept=())
    solver = cfg.SOLVER
    scaled = [solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, *solver.STEPS, solver.WARMUP_ITERS]
    assert figures(f"| {gpus} |") == pytest.approx(scaled)


@pytest.mark.parametrize("depth", [50, 101])
def test_parameters_and_bytes(depth):
    model = build_cpu_model(config(depth))
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gradients = 4e-6 * trained
    sent = [gradients * 2 * (n - 1) / n for n in (8, 64)]
    expected = [parameters, trained, gradients, *sent, checkpoint_bytes(model) / 1e6]
    assert figures(f"| R-{depth} |") == pytest.approx(expected, abs=0.05)
    for link, gigabytes_per_second in {"NVLink, 200 GB/s": 200, "100 Gbit/s": 12.5, "10 Gbit/s": 1.25}.items():
        milliseconds = figures(f"| {link}")[{50: -2, 101: -1}[depth]]
        assert milliseconds == pytest.approx(sent[1] / gigabytes_per_second, rel=0.03)


def test_a_step_sums_four_bytes_of_each_trained_parameter(tiny_cfg, batch_of, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        plain = build_model(tiny_cfg("MODEL.BACKBONE.FREEZE_AT", "2"))
        model = torch.nn.parallel.DistributedDataParallel(plain)
        sizes = []

        def hook(state, bucket):
            sizes.append(bucket.buffer().nbytes)
            return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

        model.register_comm_hook(None, hook)
        sum(model(batch_of((2,))).values()).backward()
    finally:
        dist.destroy_process_group()
    trained = sum(p.numel() for p in plain.parameters() if p.requires_grad)
    assert trained < sum(p.numel() for p in plain.parameters())
    assert sum(sizes) == 4 * trained
