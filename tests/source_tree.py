"""The project's Python files as syntax trees: what they import, and on which floor of the package they are."""

import ast
import importlib
import re
from functools import cached_property
from pathlib import Path

PACKAGE = "focal_det"
# Lowest first; a module imports from its own floor and from below. A room has a floor of its own, so that no two import
# each other.
FLOORS = [
    {"defaults", "errors", "extras", "files", "plain_data", "registries", "output_layout"},
    {"losses"},
    {"heirs"},
    {"assigners"},
    {"modeling"},
    {"plugin"},
    {"distributed"},
    {"formats"},
    {"data"},
    {"config"},
    {"inference"},
    {"evaluation"},
    {"report"},
    {"export"},
    {"environment"},
    {"checkpoint"},
    {"divergence"},
    {"evaluators"},
    {"tracking"},
    {"engine"},
    {"preflight"},
    {"launch"},
    {"training"},
    {"paper"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
ATTRIBUTE_CALLS = {"getattr", "setattr", "hasattr", "delattr"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def needs_detectron2(text):
    """Whether a test file says by `pytestmark` that it needs Detectron2, without which it could not be imported."""
    return re.search(r"^pytestmark = [^=]*pytest\.mark\.detectron2\b", text, re.MULTILINE) is not None


def _is_fixture(function):
    return any("fixture" in ast.unparse(decorator) for decorator in function.decorator_list)


def _imported_class(name):
    module, _, attribute = name.rpartition(".")
    try:
        return [getattr(importlib.import_module(module), attribute)]
    except (ImportError, AttributeError, ValueError):
        return []


class File:
    """A Python file.

    Args:
        path: relative to the project, such as focal_det/losses/box.py.
        text: its content.
    """

    def __init__(self, path, text):
        self.path, self.text = Path(path), text
        parts = self.path.with_suffix("").parts
        self.stem = parts[-1]
        self.is_init, self.is_test = self.stem == "__init__", self.stem.startswith("test_")
        self.name = ".".join(parts[:-1] if self.is_init else parts)
        self.room = parts[1] if len(parts) > 2 else ""
        self.floor = next((floor for floor, names in enumerate(FLOORS) if names.intersection(parts[1:2])), None)
        self.lines = len(text.splitlines())

    @cached_property
    def tree(self):
        return ast.parse(self.text)

    def find(self, *kinds):
        """All nodes of these kinds, in the order of lines."""
        return sorted((n for n in self._nodes if isinstance(n, kinds)), key=lambda node: node.lineno)

    def at(self, node, message):
        return f"{self.path}:{node.lineno}: {message}"

    def line(self, node):
        return self.text.splitlines()[node.lineno - 1]

    @cached_property
    def docstrings(self):
        """The nodes of its docstrings."""
        owners = [self.tree, *self.find(ast.ClassDef, *FUNCTIONS)]
        return [owner.body[0].value for owner in owners if ast.get_docstring(owner, clean=False) is not None]

    @cached_property
    def strings(self):
        """The nodes of its other string literals, and of the literal parts of its f-strings."""
        texts = [node for node in self.find(ast.Constant) if isinstance(node.value, str)]
        return [node for node in texts if node not in self.docstrings]

    @cached_property
    def defined(self):
        """Names of its functions, classes, variables and attributes of self."""
        own = [node for node in self.find(ast.Attribute) if isinstance(node.ctx, ast.Store)]
        return {
            *(node.name for node in self.find(ast.ClassDef, *FUNCTIONS)),
            *(node.id for node in self.find(ast.Name) if isinstance(node.ctx, ast.Store)),
            *(node.attr for node in own if ast.unparse(node.value) == "self"),
        }

    @cached_property
    def attributes(self):
        """(node, name) of each attribute that it takes by a dot or by a literal, as in getattr(a, "b")."""
        named = [node for node in self.find(ast.Call) if ast.unparse(node.func) in ATTRIBUTE_CALLS and node.args[1:]]
        literal = [(node, node.args[1].value) for node in named if isinstance(node.args[1], ast.Constant)]
        found = [*((node, node.attr) for node in self.find(ast.Attribute)), *literal]
        return sorted(found, key=lambda pair: pair[0].lineno)

    @cached_property
    def names(self):
        """(line, name) of its functions, classes, arguments and variables."""
        kinds = {ast.Name: "id", ast.arg: "arg", **dict.fromkeys((ast.ClassDef, *FUNCTIONS), "name")}
        stored = [n for n in self.find(*kinds) if not isinstance(n, ast.Name) or isinstance(n.ctx, ast.Store)]
        return [(node.lineno, getattr(node, kinds[type(node)])) for node in stored]

    @cached_property
    def fixtures(self):
        """Names of the fixtures that it defines."""
        return {f.name for f in self.find(*FUNCTIONS) if _is_fixture(f)}

    @cached_property
    def requested_fixtures(self):
        """Names of the fixtures that its tests and fixtures ask for, without its own."""
        asking = [f for f in self.find(*FUNCTIONS) if f.name.startswith("test_") or _is_fixture(f)]
        return {argument.arg for f in asking for argument in (*f.args.args, *f.args.kwonlyargs)} - self.fixtures

    @cached_property
    def imports(self):
        """(node, absolute name) of what it imports anywhere, `from a import b` as a.b."""
        return [(node, name) for node in self.find(ast.Import, ast.ImportFrom) for name in self._imported(node)]

    @cached_property
    def aliases(self):
        """(alias, absolute name) of what it imports anywhere."""
        nodes = self.find(ast.Import, ast.ImportFrom)
        return [pair for node in nodes for pair in zip(node.names, self._imported(node), strict=True)]

    @cached_property
    def imports_when_loaded(self):
        """The names, without what is imported in functions or for type checkers alone."""
        late = [*self.find(*FUNCTIONS), *(n for n in self.find(ast.If) if "TYPE_CHECKING" in ast.dump(n.test))]
        inner = {node for block in late for node in ast.walk(block)}
        return [name for node, name in self.imports if node not in inner]

    @cached_property
    def _nodes(self):
        return [node for node in ast.walk(self.tree) if hasattr(node, "lineno")]

    def _imported(self, node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        folder = self.name if self.is_init else self.name.rpartition(".")[0]
        base = folder.rsplit(".", node.level - 1)[0] if node.level else ""
        return [".".join(part for part in (base, node.module, alias.name) if part) for alias in node.names]


class Tree:
    """The Python files of a project.

    Args:
        files: texts by path.
    """

    def __init__(self, files):
        self.pages = [File(path, text) for path, text in files.items() if path.endswith(".md")]
        every = [File(path, text) for path, text in files.items() if path.endswith(".py")]
        self.package = [file for file in every if file.path.parts[0] == PACKAGE]
        self.tests = [file for file in every if file.path.parts[0] == "tests"]
        # The folder tests is on the path, so that its files import each other by their names alone.
        self.by_name = {file.name.removeprefix("tests."): file for file in every}

    @classmethod
    def read(cls, root):
        """Read package, tests and pages of the project in a folder."""
        paths = [path for part in (PACKAGE, "tests") for path in sorted((root / part).rglob("*.py"))]
        paths += [root / "README.md", *sorted((root / "docs").glob("*.md"))]
        return cls({str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths})

    def file_of(self, name):
        """The file of ours that an import of focal_det.errors, or of focal_det.errors.cut, takes; else None."""
        return self.by_name.get(name) or self.by_name.get(name.rpartition(".")[0])

    def methods_of_foreign_classes(self, file):
        """(method, base) of each class of a file and each class that is not of ours and that it is derived from.

        A base that cannot be imported here is left out.
        """
        for node in file.find(ast.ClassDef):
            for base in self._foreign_bases(file, node):
                yield from ((method, base) for method in node.body if isinstance(method, FUNCTIONS))

    def _foreign_bases(self, file, node):
        imported = {alias.asname or alias.name: name for alias, name in file.aliases}
        for base in map(ast.unparse, node.bases):
            first, _, rest = base.partition(".")
            name = ".".join(part for part in (imported.get(first, first), rest) if part)
            other = self.file_of(name) if first in imported else file
            if other is None:
                yield from _imported_class(name)
            for parent in other.find(ast.ClassDef) if other else ():
                if parent.name == name.rpartition(".")[2] and parent is not node:
                    yield from self._foreign_bases(other, parent)

    def loaded_with(self, names):
        """Names of all that is loaded with these imports: the packages around them and what they import in turn."""
        found, waiting = set(), list(names)
        while waiting:
            name = waiting.pop()
            if name and name not in found:
                found.add(name)
                waiting += [name.rpartition(".")[0]]
                waiting += self.by_name[name].imports_when_loaded if name in self.by_name else []
        return found
