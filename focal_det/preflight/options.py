"""What the command line of train_net.py says, parsed once and then passed on unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..data.dataset_spec import Use
from ..errors import Findings


class SetFlags(NamedTuple):
    """The data sets that flags name for one use, each flag's values in the order in which they were given."""

    data: Sequence[str] = ()  # folders or files whose format is recognised, PATH[:IMAGES]
    json: Sequence[str] = ()  # COCO annotation files
    images: Sequence[str] = ()  # the folder of images of each of them
    voc: Sequence[str] = ()  # Pascal VOC's folders, DIR[:SPLIT]

    @property
    def are_given(self) -> bool:
        """Whether a set is named."""
        return bool(self.data or self.json or self.voc)


@dataclass(frozen=True)
class TrainOptions:
    """The flags of train_net.py, by their names; the defaults are here alone."""

    config_file: tuple[str, ...] = ()  # YAML files, of which a later one wins
    overrides: tuple[str, ...] = ()  # KEY VALUE KEY VALUE ..., which win over the files
    plugin: tuple[str, ...] = ()  # modules and files to import first, see `config.plugins`
    eval_only: bool = False  # evaluate MODEL.WEIGHTS, or with `resume` the run's checkpoint, instead of training
    # "required" is --resume, "auto" also does without where there is nothing to resume from
    resume: Literal["required", "auto"] | None = None
    allow_changes: bool = False  # resume although settings or data differ from those of the checkpoint
    preflight_only: bool = False  # check everything, write nothing
    scale_lr: bool = False  # fit lr and schedule to the batch
    batch_auto: bool = False  # choose the batch that fits into memory, and fit lr and schedule to it
    train_data: tuple[str, ...] = ()  # the user's own sets to train on, see `SetFlags`; the flag is --train
    train_json: tuple[str, ...] = ()
    train_images: tuple[str, ...] = ()
    train_voc: tuple[str, ...] = ()
    val_data: tuple[str, ...] = ()  # likewise to evaluate on
    val_json: tuple[str, ...] = ()
    val_images: tuple[str, ...] = ()
    val_voc: tuple[str, ...] = ()
    allow_outside: bool = False  # names of images may lead out of the folder of images
    skip_bad_images: int = 0  # bad images that may be left out, over all sets
    num_gpus: int = 1  # processes on this machine
    num_machines: int = 1  # machines, of `num_gpus` processes each
    machine_rank: int = 0  # this machine's number, from 0
    dist_url: str = "auto"  # tcp://HOST:PORT of machine 0, or "auto" on one machine
    hang_timeout: float = 600.0  # of several processes: seconds without progress after which all end; 0: never
    start_timeout: float = 300.0  # of several processes: seconds until all must have come

    @property
    def training(self) -> bool:
        """Whether it trains, or evaluates alone."""
        return not self.eval_only

    @property
    def world_size(self) -> int:
        """The number of processes over all machines."""
        return max(1, self.num_gpus * self.num_machines)  # a number below 1 is an error of its own

    def own_sets(self, use: Use) -> SetFlags:
        """The user's own sets for one use."""
        if use == "train":
            return SetFlags(self.train_data, self.train_json, self.train_images, self.train_voc)
        return SetFlags(self.val_data, self.val_json, self.val_images, self.val_voc)


def check_options(options: TrainOptions) -> Findings:
    """Check the flags that no other check looks at."""
    errors = []
    machines, rank = options.num_machines, options.machine_rank
    if machines < 1 or not 0 <= rank < machines:
        errors.append(f"--machine-rank {rank} of --num-machines {machines}: ranks go from 0 to machines - 1")
    port = re.fullmatch(r"tcp://[^/]+:(\d{1,5})", options.dist_url)
    if options.dist_url != "auto" and not (port and 0 < int(port[1]) < 65536):
        errors.append(f"--dist-url is {options.dist_url!r}; give tcp://HOST:PORT, or leave it out on one machine")
    elif machines > 1 and not port:
        errors.append("--num-machines above 1 needs --dist-url tcp://HOST:PORT of machine 0, the same on each machine")
    if not 0 <= options.hang_timeout < math.inf:
        errors.append(f"--hang-timeout is {options.hang_timeout:g}; it must be 0 (never) or a number of seconds")
    if options.batch_auto and options.eval_only:
        errors.append("--batch auto is for a training, and --eval-only trains nothing; leave it out")
    if options.batch_auto and "SOLVER.IMS_PER_BATCH" in options.overrides[::2]:
        errors.append("--batch auto and SOLVER.IMS_PER_BATCH both choose the batch; leave one of them out")
    if options.allow_changes and options.eval_only:
        errors.append("--allow-changes is for a training that is resumed, and --eval-only trains nothing; leave it out")
    elif options.allow_changes and not options.resume:
        errors.append("--allow-changes is for a run that is resumed; add --resume")
    if options.skip_bad_images < 0:
        errors.append(f"--skip-bad-images is {options.skip_bad_images}; it must be 0 or more")
    return Findings(errors)
