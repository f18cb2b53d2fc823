"""train_net.py: from the command line to an exit code."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..config.packaged import SCHEME
from ..distributed.signals import nothing_to_save, stopping_before_training
from ..errors import EXIT_INTERRUPTED
from ..preflight.options import AUTO, TrainOptions
from .common import (
    ENDING_ERRORS,
    CommandParser,
    add_plugin_flag,
    add_tile_flags,
    add_version,
    prepare_output,
    report_error,
)
from .data_flags import add_change_flags, add_data_flags, key_flags

if TYPE_CHECKING:
    from ..config.plugins import AddConfig

_EPILOG = """examples:
  train            {run} --config-file {configs}quickstart.yaml
  your own data    {run} --config-file {configs}bccd.yaml --train my_export --split-val 0.2 \\
                       OUTPUT_DIR output/mine
  COCO             {run} --config-file {configs}bccd.yaml --train-json train.json --train-images images \\
                       --val-json val.json --val-images images OUTPUT_DIR output/mine
  Pascal VOC       {run} --config-file {configs}bccd.yaml --train-voc voc:train --val-voc voc:val \\
                       OUTPUT_DIR output/mine
  large images     {run} --config-file {configs}bccd.yaml --train my_export --split-val 0.2 --tile 640 \\
                       OUTPUT_DIR output/mine
  change a key     {run} --config-file {configs}quickstart.yaml SOLVER.BASE_LR 0.02
  your own parts   {run} --config-file {configs}quickstart.yaml --plugin my_loss.py \\
                       MODEL.FOCAL_DET.LOSS.NAME MyLoss
  largest batch    {run} --config-file {configs}bccd.yaml --train my_export --split-val 0.2 --batch auto \\
                       OUTPUT_DIR output/mine
  8 GPUs           {run} --config-file {configs}retinanet_R_50_FPN_1x.yaml --num-gpus 8
  torchrun, SLURM  torchrun --nproc-per-node 8 {module} --config-file {configs}retinanet_R_50_FPN_1x.yaml
                   srun --ntasks-per-node 8 --gpus-per-node 8 --gpu-bind=none --cpus-per-task 6 \\
                       --kill-on-bad-exit=0 {process} --config-file {configs}retinanet_R_50_FPN_1x.yaml
  resume           {run} --config-file {configs}quickstart.yaml --resume
  evaluate         {run} --config-file {configs}quickstart.yaml --eval-only \\
                       MODEL.WEIGHTS output/quickstart/model_final.pth

exit codes: 0 done, 1 a fault while running, 2 bad input and nothing started,
            75 stopped by a signal after saving (run again with --resume),
            130 or 143 an evaluation that was stopped; torchrun's own is 0 or 1
"""
SCRIPT, COMMAND = "train_net.py", "focal-det train"
_WORDS = {  # of the examples, in a checkout and where the package is installed
    SCRIPT: {"module": SCRIPT, "process": f"python {SCRIPT}", "configs": "configs/"},
    COMMAND: {"module": "-m focal_det train", "process": COMMAND, "configs": SCHEME},
}
_DESCRIPTION = "Train, evaluate or resume a detector on Detectron2's engine."


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser], summary: str) -> None:
    """Add "train", so that it is listed and completed; its command lines are read by `main`."""
    epilog = _EPILOG.format(run=COMMAND, **_WORDS[COMMAND])
    parser = commands.add_parser("train", help=summary, description=_DESCRIPTION, epilog=epilog)
    add_arguments(parser)


def main(
    argv: Sequence[str] | None = None,
    *,
    add_config: AddConfig | None = None,
    prog: str = SCRIPT,
    ends_process: bool | None = None,
) -> int:
    """Run the command line of train_net.py, or of `focal-det train`.

    Args:
        argv: the arguments; those of this process if None.
        add_config: adds keys of your own to a configuration, as a function of `registries.CONFIG_REGISTRY` does; it
            stays registered in this process.
        prog: the name by which it speaks of itself.
        ends_process: whether the process ends with the exit code, which a late signal then does not change; by default
            if the arguments are those of the process.

    Returns:
        The exit code: 0 done, 1 a fault while running, 2 bad input and nothing started, 75 stopped by a signal after
        saving; of a signal before the training began that leaves as SystemExit.
    """
    options = parse_arguments(sys.argv[1:] if argv is None else argv, prog)
    prepare_output()
    try:
        trains = options.training and not options.preflight_only
        ends_process = argv is None if ends_process is None else ends_process
        with stopping_before_training(trains=trains, ends_process=ends_process):
            from .. import plugin  # noqa: F401 - first, since it says what to do where Detectron2 is missing
            from ..config.plugins import load_plugins, register_config
            from ..distributed.cluster import cluster_environment
            from ..launch import run_as_launcher, run_as_rank  # takes seconds to import, which --help need not wait for

            if add_config is not None:
                register_config(add_config)
            load_plugins(options.plugin)
            cluster = cluster_environment(os.environ)
            return run_as_launcher(options) if cluster is None else run_as_rank(options, cluster)
    except ENDING_ERRORS as error:
        return report_error(error)
    except KeyboardInterrupt:
        print(nothing_to_save(signal.SIGINT), file=sys.stderr)
        return EXIT_INTERRUPTED


def seconds(text: str) -> float:
    """Parse the value of --start-timeout: above 0, and at most a day."""
    value = float(text)
    if not 0 < value <= 86400:
        raise ValueError
    return value


def batch(text: str) -> int | Literal["auto"]:
    """Parse the value of --batch: a number of images, or "auto"."""
    return AUTO if text == AUTO else int(text)


batch.__name__ = "N|auto"  # argparse's name for it in an error


def parse_arguments(argv: Sequence[str], prog: str = SCRIPT) -> TrainOptions:
    """Parse the command line; argparse exits with code 2 on one that it cannot read."""
    parser = CommandParser(prog=prog, description=_DESCRIPTION, epilog=_EPILOG.format(run=prog, **_WORDS[prog]))
    add_arguments(parser)
    # "--resume", or its beginning, takes an optional word; without this it would take the first override's key for it.
    words = [
        "--resume=required" if _is_resume(word) and not {*argv[i + 1 : i + 2]} & {"required", "auto"} else word
        for i, word in enumerate(argv)
    ]
    return options_of(parser.parse_intermixed_args(words))


def options_of(args: argparse.Namespace) -> TrainOptions:
    """Return the flags of `add_arguments` as options."""
    args.of_flags = key_flags(args)
    fields = {field.name for field in dataclasses.fields(TrainOptions)}
    parsed = {name: value for name, value in vars(args).items() if name in fields}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in parsed.items()}
    return TrainOptions(**values)


def _is_resume(word: str) -> bool:
    """Tell whether it is --resume, or as much of it as no other flag begins with."""
    return word.startswith("--r") and "--resume".startswith(word)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, whose defaults are those of `TrainOptions`."""
    add_version(parser)
    parser.set_defaults(**dataclasses.asdict(TrainOptions()))
    parser.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help=f"YAML configuration, or {SCHEME}NAME of one of the package's; of several the later ones win",
    )
    add_plugin_flag(parser)
    text = "evaluate MODEL.WEIGHTS, or with --resume OUTPUT_DIR's last checkpoint, and stop"
    parser.add_argument("--eval-only", action="store_true", help=text)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="required",
        choices=("required", "auto"),
        help="resume from OUTPUT_DIR's last checkpoint; 'auto' starts fresh if there is none",
    )
    switches = {
        "--allow-changes": "resume with settings or data that differ from those of the checkpoint",
        "--preflight-only": "check everything, print a summary and stop",
        "--scale-lr": "fit lr and schedule to SOLVER.IMS_PER_BATCH if that differs from the config file's",
    }
    for flag, text in switches.items():
        parser.add_argument(flag, action="store_true", help=text)
    text = "images in a step, of all processes (SOLVER.IMS_PER_BATCH), with --scale-lr; 'auto' takes as many as fit"
    parser.add_argument("--batch", type=batch, metavar="N|auto", help=text)
    add_data_flags(parser)
    add_change_flags(parser)
    add_tile_flags(parser, "train and evaluate", "configuration")
    default = "(default %(default)s)"
    parser.add_argument("--skip-bad-images", type=int, metavar="N", help=f"leave out up to N bad images {default}")
    scale = parser.add_argument_group("processes")
    scale.add_argument("--num-gpus", type=int, help=f"processes on this machine, one per GPU {default}")
    scale.add_argument("--num-machines", type=int, help="default %(default)s")
    scale.add_argument("--machine-rank", type=int, help=f"of this machine, from 0 {default}")
    scale.add_argument("--dist-url", help="tcp://HOST:PORT of machine 0; '%(default)s' on one machine")
    scale.add_argument(
        "--hang-timeout",
        type=float,
        metavar="SECONDS",
        help="of several processes, end all when none has made progress for so long (default %(default)g; 0: never)",
    )
    scale.add_argument(
        "--start-timeout",
        type=seconds,
        metavar="SECONDS",
        help="of several processes or machines: how long to wait until all have come, and as long again until they "
        "have connected (default %(default)g)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
