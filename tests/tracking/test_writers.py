"""The log line of a training, and the one about the speed options."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.tracking.writers import ConsoleWriter, speed_options_line, speed_summary

pytestmark = pytest.mark.detectron2


def written(lines, iteration, times, *, best=None, iterations_per_epoch=250, max_iter=1000):
    """The line after an iteration, and what it has put into the metrics."""
    writer = ConsoleWriter(
        max_iter, iterations_per_epoch=iterations_per_epoch, best=lambda: best, device=torch.device("cpu")
    )
    with EventStorage(iteration - len(times) + 1) as storage:
        for seconds in times:
            storage.put_scalars(time=seconds, data_time=0.25, total_loss=3.0, loss_cls=2.0, loss_box_reg=1.0)
            storage.put_scalar("lr", 0.012, smoothing_hint=False)
            storage.put_scalar("val/loss_cls", 9.0)
            storage.iter = storage.iter + 1
        storage.iter = iteration
        writer.write()
        writer.write()  # at the end of training writers are called once more
        return lines, {name: value for name, (value, _) in storage.latest().items()}


def test_the_line_says_how_far_how_fast_and_how_well(lines):
    # 40 of 1000 iterations, 250 to the epoch; the 960 that are left take .5 s each: 480 s
    (line,), metrics = written(lines, 39, [0.5] * 20, best=(43.21, 20))
    memory = line.split("memory ")[1].split(" GB")[0]
    assert line == (
        "iteration 40/1000 (epoch 0.16)  eta 0:08:00  2 it/s  data 0.250 s  "
        f"memory {memory} GB  lr 0.012  total_loss 3  loss_cls 2  loss_box_reg 1  best AP 43.2 (after 20)"
    )
    assert 0.05 < float(memory) < 100
    assert (metrics["epoch"], metrics["eta_seconds"]) == (0.16, 480)


def test_speed_is_the_mean_since_on_a_gpu_one_step_waits_for_all(lines):
    # 19 steps of .1 s and one of 2.1 s are 4 s for 20
    (line,), _ = written(lines, 39, [0.1] * 19 + [2.1])
    assert "  5 it/s  " in line


def test_slow_steps_are_given_in_seconds_and_what_is_unknown_is_left_open(lines):
    (line,), metrics = written(lines, 39, [2.0] * 20, iterations_per_epoch=None)
    assert "  0.5 it/s  " in line
    assert line.startswith("iteration 40/1000  eta 0:32:00")
    assert line.endswith("best AP -")
    assert "epoch" not in metrics


def test_the_first_steps_are_not_timed_and_nothing_is_written_after_the_last(lines):
    written(lines, 1, [])
    assert "eta -" in lines[0]
    assert written(lines[:0], 1000, [0.5] * 20)[0] == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "none"),  # GroupNorm on the processor: neither is of use
        (["MODEL.RESNETS.NORM", "FrozenBN"], "CHANNELS_LAST, FOLD_NORMS"),
        (["MODEL.FOCAL_DET.SPEED.FUSED_SGD", "True"], "FUSED_SGD"),
        (["MODEL.FOCAL_DET.SPEED.BFLOAT16_INFERENCE", "True"], "BFLOAT16_INFERENCE"),
        (
            ["MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS", "True", "MODEL.FOCAL_DET.SPEED.PAD_TO", "[[32, 64]]"],
            "CUDA_GRAPHS, PAD_TO",
        ),
        (["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"], "AMP bfloat16"),
    ],
)
def test_the_speed_options_in_use_are_named(tiny_cfg, overrides, expected):
    cfg = tiny_cfg(*overrides)
    line, *reasons = speed_options_line(cfg, build_model(cfg)).partition(". Batches")[0].split("; ")
    assert line == f"Speed options in use: {expected}"
    why = ["not CHANNELS_LAST, with which GroupNorm is slow on a processor", "not FOLD_NORMS, since no norm is frozen"]
    assert reasons == ([] if "FOLD_NORMS" in expected else why)


def test_the_log_says_the_shapes_that_were_chosen_and_what_they_cost(tiny_cfg):
    sizes = ("INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MIN_SIZE_TEST", "800")
    cfg = tiny_cfg(*sizes, "MODEL.FOCAL_DET.SPEED.PAD_TO", "[3]")
    assert "Batches are padded to 800x1088, 800x1216, 800x1344 or the same upright, 0.5% more pixels for" in (
        speed_options_line(cfg, build_model(cfg))
    )


def test_what_padding_costs_is_not_said_of_images_that_are_not_resized(tiny_cfg):
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(0,)", "MODEL.FOCAL_DET.SPEED.PAD_TO", "[[64, 96]]")
    assert speed_options_line(cfg, build_model(cfg)).endswith("Batches are padded to 64x96 or the same upright")


def test_the_log_says_that_compiling_takes_minutes(tiny_cfg):
    cfg = tiny_cfg("MODEL.FOCAL_DET.SPEED.COMPILE", "True")
    assert "Compiling takes minutes" in speed_options_line(cfg, build_model(cfg))


def test_the_end_says_what_the_speed_options_were_good_for(tiny_cfg, batch_of):
    options = ("MODEL.FOCAL_DET.SPEED.CUDA_GRAPHS", "True", "MODEL.FOCAL_DET.SPEED.PAD_TO", "[[32, 64]]")
    model = build_model(tiny_cfg(*options))
    model(batch_of((1,)))
    graphs, padding = speed_summary(model)
    assert graphs.startswith("CUDA graphs: 0 captured; of 1 calls of the network 0 were replays and 1 ran without")
    assert padding == "PAD_TO: 1 batches were larger than every shape, and not padded"
    assert speed_summary(build_model(tiny_cfg())) == []
