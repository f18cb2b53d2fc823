"""Machine instructions a logit of the class loss's Triton kernel, compiled ahead of time: no GPU is needed.

    python benchmarks/kernel_instructions.py [--capability 90] [--classes 80] [--dtype bfloat16]

Prints a Markdown table. A row is a launch: "forward" writes loss and gradients, "loss" and "gradients" are the two
passes of float16, "loss" alone is a validation's. Counted is one thread's way through a whole program: what it does
once, and for each of its tiles the loop with the arm for background alone ("background") or the other ("an object"),
divided by its logits.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from focal_det.losses import triton_kernels
from focal_det.losses.triton_loss import triton_batch_loss

LOSSES = {
    "cross-entropy": {"kind": "cross_entropy", "gamma": 0.0, "shift": 0.0},
    "focal, gamma 2": {"kind": "focal", "gamma": 2.0, "shift": 0.0},
    "focal, gamma 0.5": {"kind": "focal", "gamma": 0.5, "shift": 0.0},
    "FL*": {"kind": "focal_star", "gamma": 2.0, "shift": 1.0},
    "hinge": {"kind": "hinge", "gamma": 0.0, "shift": 0.5},
}
LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))  # of 800x1344 px
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


class Launch(NamedTuple):
    """A kernel with the arguments and the options that it is launched with."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        given = dict(zip(self.kernel.arg_names, self.arguments, strict=False))
        if given["grads"] is None:
            return "loss"
        return "gradients" if given["partials"] is None else "forward"


def recorded(run: Callable[[], object]) -> list[Launch]:
    """Return the launches of a function that computes the loss; none of them takes place."""
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *arguments, **options: launches.append(Launch(self.kernel, arguments, options))

    with mock.patch.object(triton_kernels, "loss_kernel", Recorder(triton_kernels.loss_kernel)):
        run()
    return launches


def compiled(launch: Launch, capability: int) -> Any:
    """Return what Triton makes of a launch for a compute capability, such as 90 for 9.0."""
    kernel, arguments, options = launch
    given = dict(zip(kernel.arg_names, arguments, strict=False))
    attributes: dict[Any, Any] = {}
    signature = {name: _type_of(value, (i,), attributes) for i, (name, value) in enumerate(given.items())}
    constants = {name: options[name] for name in kernel.arg_names[len(arguments) :]}
    constants |= {name: None for name, value in given.items() if value is None}
    signature |= dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    rest = {name: value for name, value in options.items() if name not in constants}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=rest)


def _type_of(value: Any, place: tuple[int, ...], attributes: dict[Any, Any]) -> Any:
    """The type that Triton gives an argument, and in `attributes` that tensors are aligned."""
    if isinstance(value, Tensor):
        attributes[place] = [["tt.divisibility", 16]]
        return TYPES[value.dtype]
    if isinstance(value, tuple):
        return tuple(_type_of(each, (*place, i), attributes) for i, each in enumerate(value))
    return "fp32" if isinstance(value, float) else "i32"


class Usage(NamedTuple):
    """Registers of a thread, and bytes of its memory beside them, where spilled ones are."""

    registers: int
    stack: int
    local: int


def usage(code: Any) -> Usage:
    found = _asked(code, triton.knobs.nvidia.cuobjdump.path, "-res-usage")
    return Usage(*(int(re.search(rf"{name}:(\d+)", found)[1]) for name in ("REG", "STACK", "LOCAL")))  # type: ignore[index]


def instructions(code: Any) -> tuple[int, int, int]:
    """Return a program's instructions: once, for a tile of background alone, and for one with an object.

    Raises:
        ValueError: the machine code is not one loop with one choice between two arms.
    """
    lines, labels = [], {}
    for line in _asked(code, triton.knobs.nvidia.nvdisasm.path, "-c").splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            lines.append(instruction[1].strip())
    jumps = [(i, labels[found[1]]) for i, line in enumerate(lines) if (found := re.search(r"BRA.*?(\.L_x_\d+)", line))]
    end = next(i for i, target in jumps if target == i)  # padding follows
    loops = [(target, i) for i, target in jumps if target < i]
    if len(loops) == 1:
        first, last = loops[0]
        inside = {i: target for i, target in jumps if first <= i < target <= last}
        choices = [(i, target) for i, target in inside.items() if lines[i].startswith("@")]
        if len(choices) == 1 and choices[0][1] - 1 in inside:
            start, other = choices[0]
            arms = sorted((other - start - 1, inside[other - 1] - other))
            loop = last - first + 1
            return end - loop, loop - arms[1], loop - arms[0]
    raise ValueError(f"not one loop with one choice: {len(loops)} loops")


def _asked(code: Any, program: str, option: str) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(code.asm["cubin"])
        return subprocess.run([program, option, str(path)], capture_output=True, text=True, check=True).stdout


def a_logit(launch: Launch, code: Any) -> tuple[float, float]:
    """Return a thread's instructions divided by its logits: where all is background, and with objects everywhere."""
    once, *loops = instructions(code)
    tiles = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False))["num_tiles"]
    logits = launch.options["tile_size"] / (32 * launch.options["num_warps"])
    background, with_object = ((once / tiles + loop) / logits for loop in loops)
    return background, with_object


def launches(dtype: torch.dtype, num_classes: int, constants: dict[str, Any]) -> list[Launch]:
    """The launches of a training step, and of a validation."""
    levels = [
        torch.zeros(2, height, width, 9 * num_classes, dtype=dtype, device="meta").unflatten(-1, (9, -1))
        for height, width in LEVELS
    ]
    labels = torch.zeros(2, sum(9 * height * width for height, width in LEVELS), dtype=torch.int64, device="meta")
    divisors = torch.ones(2, device="meta")

    def run() -> None:
        needing = [level.requires_grad_() for level in levels]
        triton_batch_loss(needing, labels, divisors, weights=(0.25, 0.75), **constants).backward()

    return recorded(run)


def rows(capability: int, num_classes: int, dtypes: list[str]) -> Iterator[str]:
    for dtype in dtypes:
        for name, constants in LOSSES.items():
            for launch in launches(getattr(torch, dtype), num_classes, constants):
                code = compiled(launch, capability)
                background, with_object = a_logit(launch, code)
                counts = f"{background:.1f} | {with_object:.1f} | {usage(code).registers}"
                yield f"| {name} | {dtype} | {launch.name} | {counts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float16", "float32"])
    args = parser.parse_args()
    print("| loss | logits | launch | background | an object | registers |")
    print("|---|---|---|--:|--:|--:|")
    for row in rows(args.capability, args.classes, args.dtype):
        print(row, flush=True)


if __name__ == "__main__":
    main()
