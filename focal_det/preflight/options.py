"""What the command line of train_net.py says, parsed once and then passed on unchanged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..data.dataset_spec import Use
from ..errors import Findings

AUTO: Literal["auto"] = "auto"  # of --batch
_BATCH = "SOLVER.IMS_PER_BATCH"


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


class KeyFlag(NamedTuple):
    """A flag that was given and stands for a key, such as --tile 640 for MODEL.FOCAL_DET.TILES.SIZE 640."""

    flag: str
    key: str
    value: str


@dataclass(frozen=True)
class TrainOptions:
    """The flags of train_net.py, by their names; the defaults are here alone."""

    config_file: tuple[str, ...] = ()  # YAML files, of which a later one wins
    overrides: tuple[str, ...] = ()  # KEY VALUE KEY VALUE ..., which win over the files
    of_flags: tuple[KeyFlag, ...] = ()  # other flags that stand for keys
    plugin: tuple[str, ...] = ()  # modules and files to import first, see `config.plugins`
    eval_only: bool = False  # evaluate MODEL.WEIGHTS, or with `resume` the run's checkpoint, instead of training
    # "required" is --resume, "auto" also does without where there is nothing to resume from
    resume: Literal["required", "auto"] | None = None
    allow_changes: bool = False  # resume although settings or data differ from those of the checkpoint
    preflight_only: bool = False  # check everything, write nothing
    scale_lr: bool = False  # fit lr and schedule to the batch
    # images in a step, "auto" for as many as fit into memory; lr and schedule are fitted to it
    batch: int | Literal["auto"] | None = None
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

    @property
    def batch_auto(self) -> bool:
        """Tell whether the batch is to be the largest that fits into memory."""
        return self.batch == AUTO

    @property
    def key_flags(self) -> tuple[KeyFlag, ...]:
        """All flags that stand for keys."""
        number = () if self.batch is None or self.batch_auto else (KeyFlag("--batch", _BATCH, str(self.batch)),)
        return (*self.of_flags, *number)

    @property
    def settings(self) -> tuple[str, ...]:
        """The overrides, and what flags set: KEY VALUE KEY VALUE ..."""
        return (*self.overrides, *(word for given in self.key_flags for word in (given.key, given.value)))

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
    if not isinstance(options.batch, int | None) and not options.batch_auto:  # from Python
        errors.append(f'batch is {options.batch!r}; it must be a number of images, or "auto"')
    if options.batch is not None and options.eval_only:
        errors.append(f"--batch {options.batch} is for a training, and --eval-only trains nothing; leave it out")
    if options.batch_auto and _BATCH in options.overrides[::2]:
        errors.append(f"--batch auto and {_BATCH} both choose the batch; leave one of them out")
    errors += keys_given_twice(options.overrides, options.key_flags)
    if options.allow_changes and options.eval_only:
        errors.append("--allow-changes is for a training that is resumed, and --eval-only trains nothing; leave it out")
    elif options.allow_changes and not options.resume:
        errors.append("--allow-changes is for a run that is resumed; add --resume")
    if options.skip_bad_images < 0:
        errors.append(f"--skip-bad-images is {options.skip_bad_images}; it must be 0 or more")
    return Findings(errors)


def keys_given_twice(overrides: Sequence[str], of_flags: Sequence[KeyFlag]) -> list[str]:
    """Return what is wrong where KEY VALUE KEY VALUE ... has a key that a flag stands for as well."""
    by_hand = dict(zip(overrides[::2], overrides[1::2], strict=False))
    return [
        f"{flag} {value} and {key} {by_hand[key] or repr('')} both set {key}; leave one of them out"
        for flag, key, value in of_flags
        if key in by_hand
    ]
