"""The command line of train_net.py: Detectron2's, with flags anywhere and data sets from files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .datasets import add_data_flags

_EPILOG = """examples:
  train            train_net.py --config-file configs/quickstart.yaml
  your own data    train_net.py --config-file configs/bccd.yaml --train-json train.json --train-images pictures \\
                       --val-json val.json --val-images pictures OUTPUT_DIR output/mine
  Pascal VOC       train_net.py --config-file configs/bccd.yaml --train-voc voc:train --val-voc voc:val \\
                       OUTPUT_DIR output/mine
  change a key     train_net.py --config-file configs/quickstart.yaml SOLVER.BASE_LR 0.02
  8 GPUs           train_net.py --config-file configs/retinanet_R_50_FPN_1x.yaml --num-gpus 8
  torchrun, SLURM  torchrun --nproc-per-node 8 train_net.py --config-file configs/retinanet_R_50_FPN_1x.yaml
                   srun --ntasks-per-node 8 python train_net.py --config-file configs/retinanet_R_50_FPN_1x.yaml
  go on            train_net.py --config-file configs/quickstart.yaml --resume
  evaluate         train_net.py --config-file configs/quickstart.yaml --eval-only \\
                       MODEL.WEIGHTS output/quickstart/model_final.pth

exit codes: 0 done, 1 a fault while running, 2 bad input and nothing started,
            75 stopped by a signal after saving (run again with --resume)
"""


def seconds(text: str) -> float:
    """The type of --start-timeout: above 0, and at most a day."""
    value = float(text)
    if not 0 < value <= 86400:
        raise ValueError
    return value


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; argparse exits with code 2 on one that it cannot read.

    Returns:
        The flags, and `overrides`, the list KEY VALUE KEY VALUE ... in their order.
    """
    parser = argparse.ArgumentParser(
        prog="train_net.py",
        description="Train, evaluate or resume a detector on Detectron2's engine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config-file",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML configuration; given several times, a later one changes what an earlier one says",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="required",
        choices=("required", "auto"),
        help="go on from OUTPUT_DIR's last checkpoint; 'auto' starts fresh if there is none",
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="let a resumed run go on with settings or data that are not those of its checkpoint",
    )
    parser.add_argument("--preflight-only", action="store_true", help="check everything, print a summary and stop")
    parser.add_argument(
        "--scale-lr",
        action="store_true",
        help="fit lr and schedule to SOLVER.IMS_PER_BATCH if that differs from the config file's",
    )
    add_data_flags(parser)
    parser.add_argument(
        "--skip-bad-images", type=int, default=0, metavar="N", help="leave out up to N bad pictures (default 0)"
    )
    scale = parser.add_argument_group("processes")
    scale.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU (default 1)")
    scale.add_argument("--num-machines", type=int, default=1, help="default 1")
    scale.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0 (default 0)")
    scale.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; 'auto' on one machine")
    scale.add_argument(
        "--hang-timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="of several processes, end all when none gets any further for so long (default 600; 0: never)",
    )
    scale.add_argument(
        "--start-timeout",
        type=seconds,
        default=300.0,
        metavar="SECONDS",
        help="of several processes or machines: how long to wait until all have come (default 300)",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys to change")
    # "--resume" takes an optional word; without this it would take the first override's key for it.
    words = [
        "--resume=required" if word == "--resume" and list(argv[i + 1 : i + 2]) != ["auto"] else word
        for i, word in enumerate(argv)
    ]
    return parser.parse_intermixed_args(words)
