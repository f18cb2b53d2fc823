"""Record which files of a package a run enters; house_runs.py installs this as sitecustomize.py in its processes.

As modules are imported, each function gets a first line that records its file. A profile function (`sys.setprofile`)
would slow the run down, and would miss signal handlers: Python calls most of them inside the profile function.

The folder in the environment variable HOUSE_FOLDER holds two files:

- `phase`: two bytes that all processes share. The run counts its training steps in the first; whoever measures sets the
  second when it sends a signal.
- `record`: one JSON object a line, with `kind`, `phase`, `pid` and `time`. The kinds are `entered`, with `file`, once
  for each phase and process; `opened` (by Python's open), `loaded` (by torch.load) and `unzipped` (a zip archive, when
  its first record is read), with the `path` of a .pth file; and `model`, a meta-architecture that is built. All but the
  first have `by`: the package's functions that led there, innermost first.

Nothing happens on import when HOUSE_FOLDER is not set.
"""

from __future__ import annotations

import ast
import builtins
import json
import mmap
import os
import sys
import time
import zipfile
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

# Functions outside the package: by the end of the file's path, the function, the recorder to call, and its argument.
WATCHED = {
    "detectron2/engine/train_loop.py": ("TrainerBase.before_step", "__house_step__", "self"),
    "torch/nn/modules/module.py": ("Module.__init__", "__house_module__", "self"),
    "torch/serialization.py": ("load", "__house_loaded__", "f"),
}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_STACK = 4  # innermost functions that `by` names


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _prepend(body: list[ast.stmt], call: ast.Call) -> None:
    """Insert a call as the first statement after the docstring."""
    has_docstring = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    body.insert(1 if has_docstring else 0, ast.Expr(call))


class Marker(ast.NodeTransformer):
    """Make every function of a module record that it is entered, and every generator that it is resumed.

    A generator can be resumed by an exception as well, so its handlers and `finally` blocks record it too: a context
    manager written as a generator then counts when it is left, just as a class with `__exit__` does.
    """

    def __init__(self, file: str) -> None:
        self._file = ast.Constant(file)
        self._in_generator = False

    def _function(self, node: Any) -> Any:
        outer, self._in_generator = self._in_generator, _yields(node.body)
        self.generic_visit(node)
        self._in_generator = outer
        _prepend(node.body, _call("__house_entered__", self._file))
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _function  # noqa: N815 - ast's names

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        self.generic_visit(node)
        node.body = ast.BoolOp(ast.Or(), [_call("__house_entered__", self._file), node.body])  # the call returns None
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.Call:
        self.generic_visit(node)
        return _call("__house_resumed__", self._file, node)

    def visit_Try(self, node: ast.Try) -> ast.Try:
        self.generic_visit(node)
        if self._in_generator:
            for block in (*(handler.body for handler in node.handlers), node.finalbody):
                if block:
                    block.insert(0, ast.Expr(_call("__house_entered__", self._file)))
        return node


def _yields(body: list[ast.stmt]) -> bool:
    """Return whether a function is a generator; functions inside it do not make it one."""
    nodes: list[ast.AST] = [*body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, (*FUNCTIONS, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return False


def marked(source: str | bytes, path: str, file: str) -> CodeType:
    """Compile a module of the package so that every function records `file`."""
    tree = Marker(file).visit(ast.parse(source, path))
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def watched(source: str | bytes, path: str, function: str, recorder: str, argument: str) -> CodeType:
    """Compile a module outside the package with a call of a recorder in one of its functions.

    Raises:
        LookupError: it has no such function.
    """
    tree = ast.parse(source, path)
    node: Any = tree
    for name in function.split("."):
        node = next((n for n in node.body if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name == name), None)
        if node is None:
            raise LookupError(f"{path} has no {function}, which tools/house_probe.py records")
    _prepend(node.body, _call(recorder, ast.Name(argument, ast.Load())))
    return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Probe:
    """The record of this process and of those that it forks.

    Args:
        folder: HOUSE_FOLDER.
        package: the folder of the package's code.
    """

    def __init__(self, folder: str, package: str) -> None:
        self._package = os.path.join(package, "")
        with open(os.path.join(folder, "phase"), "r+b") as file:
            self._phase = mmap.mmap(file.fileno(), 2)
        # Written line by line without a buffer, since a process may leave by os._exit.
        self._record = os.open(os.path.join(folder, "record"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._seen: set[tuple[bytes, str]] = set()
        self._steps = 0
        self._archives: set[int] = set()

    def install(self) -> None:
        """Record whatever is imported from now on, and every file that is opened."""
        builtins.__dict__.update(
            __house_entered__=self.entered,
            __house_resumed__=self.resumed,
            __house_step__=self.step,
            __house_module__=self.module,
            __house_loaded__=lambda path: self.file("loaded", path),
        )
        get_code, unzip = SourceFileLoader.get_code, zipfile.ZipFile.open

        def get_marked_code(loader: SourceFileLoader, name: str) -> CodeType | None:
            path = loader.path
            if path.startswith(self._package):
                return marked(loader.get_data(path), path, os.path.relpath(path, self._package))
            for ending, rule in WATCHED.items():
                if path.endswith("/" + ending):
                    return watched(loader.get_data(path), path, *rule)
            return get_code(loader, name)

        def open_record(archive: zipfile.ZipFile, *arguments: Any, **options: Any) -> Any:
            if not hasattr(archive, "_house_seen"):
                archive._house_seen = True  # type: ignore[attr-defined]
                self.file("unzipped", archive.filename)
            return unzip(archive, *arguments, **options)

        SourceFileLoader.get_code = get_marked_code  # type: ignore[assignment,method-assign]
        zipfile.ZipFile.open = open_record  # type: ignore[assignment,method-assign]
        sys.addaudithook(lambda event, words: self.file("opened", words[0]) if event == "open" else None)

    def entered(self, file: str) -> None:
        """Record that a file of the package is entered, unless a module of the package is just being imported."""
        phase = self._phase[:]
        if (phase, file) not in self._seen and not any(name == "<module>" for _, name in self._stack()):
            self._seen.add((phase, file))
            self._write("entered", phase, file=file)

    def resumed(self, file: str, value: Any) -> Any:
        """Record that a generator is resumed; return the value that it was sent."""
        self.entered(file)
        return value

    def step(self, _: Any) -> None:
        """Count a training step; the ranks of a run take theirs together."""
        self._steps = min(self._steps + 1, 255)
        self._phase[0] = max(self._phase[0], self._steps)

    def module(self, made: Any) -> None:
        """Record a model that is built, among all modules of torch."""
        build = sys.modules.get("detectron2.modeling.meta_arch.build")
        if build is not None and type(made) in [registered for _, registered in build.META_ARCH_REGISTRY]:
            self._write("model", self._phase[:], by=self._by())

    def file(self, kind: str, path: Any) -> None:
        """Record the use of a .pth file, given as a path or an open file."""
        if not isinstance(path, str | os.PathLike):
            path = getattr(path, "name", None)
        if isinstance(path, str | os.PathLike) and os.fspath(path).endswith(".pth"):
            self._write(kind, self._phase[:], path=os.path.realpath(path), by=self._by())

    def _stack(self) -> Any:
        """Yield file and name of the package's functions and modules on the stack, innermost first."""
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(self._package):
                yield os.path.relpath(frame.f_code.co_filename, self._package), frame.f_code.co_name
            frame = frame.f_back  # type: ignore[assignment]

    def _by(self) -> list[str]:
        return [f"{file}:{name}" for file, name in self._stack()][:_STACK]

    def _write(self, kind: str, phase: bytes, **what: Any) -> None:
        line = {"kind": kind, "phase": list(phase), "pid": os.getpid(), "time": time.time(), **what}
        os.write(self._record, json.dumps(line).encode() + b"\n")


if "HOUSE_FOLDER" in os.environ:
    Probe(os.environ["HOUSE_FOLDER"], os.environ["HOUSE_PACKAGE"]).install()
