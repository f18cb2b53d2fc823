"""The rules of the house: each is tried on files that break it, then held against the project.

A rule takes a `Tree` and yields "path: message" or "path:line: message" for each violation.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from source_tree import Tree, needs_detectron2

PROJECT = Tree.read(Path(__file__).parents[1])
RULES = []

# Functions on tensors, beside the losses; and which of both import none of ours.
MATHEMATICS = {"anchors", "box_coding", "criterion", "decode", "nms", "normalizer"}
LEAVES = {"anchors", "assignment", "box", "box_coding", "formula", "normalizer"}
# What a test file may be about that is not one module, by folder of tests/.
TOPICS = {
    "": {
        "benchmarks",
        "configuration_page",
        "devices",
        "docs",
        "forked",
        "house",
        "installed",
        "losses_page",
        "reproduction_page",
        "own_data_page",
        "predict_page",
        "python_pages",
        "rules",
        "scaling_page",
        "serving_page",
        "statements",
        "time_limit",
        "training_habits_page",
        "tutorial",
        "types",
        "upstream",
        "without_detectron2",
    },
    "checkpoint": {"malicious", "saving"},
    "config": {"every_key", "fuzzing"},
    "distributed": {"gpu", "ranks_agree"},
    "doctor": {"doctor"},
    "engine": {"gpu", "old_run", "resume", "speed_options", "training"},
    "evaluation": {"parity"},
    "formats": {"fuzzing", "hostile_files"},
    "losses": {"family"},
    "modeling": {"lazy_config", "parity"},
    "preflight": {"changed_sets"},
    "report": {"browser"},
}
OTHER_WORDS = re.compile(
    r"picture|\bmend|\bspoil|\blevers?\b|\b(is|are) no numbers?\b|\bgo(es|ing)? on\b", re.IGNORECASE
)
# Flags, a file and a key of checkpoints that keep their names.
OLD_NAMES = re.compile(r"--(check-)?pictures\b|args\.(check_)?pictures\b|\bpictures\.png|\"pictures\"")
# Private by their spelling alone: Python and PyTorch (`torch._check`) document them.
DOCUMENTED = {"_exit", "_asdict", "_replace", "_fields", "_SubParsersAction", "_ActionsContainer", "_check"}
PRIVATE = re.compile(r"_[^_]")
ONE_PLACE = {"argparse": "focal_det/cli/", "signal.signal": "focal_det/distributed/signals.py"}


def rule(broken, *places):
    """Declare a rule, with texts by path that break it and the places that it must name then.

    Those outside tests/ and docs/ are in the package: data/a for focal_det/data/a.py, data/a:1 for its first line.
    """

    def full(path):
        return (
            path
            if path.startswith(("tests/", "docs/"))
            else re.sub(r"(?<=\w)(?=$|:)", ".py", f"focal_det/{path}", count=1)
        )

    def declare(check):
        files = {full(path): text for path, text in broken.items()}
        RULES.append(pytest.param(check, files, [full(place) for place in places], id=check.__name__))
        return check

    return declare


@rule({"new/a": "", "data/a": "", "__init__": ""}, "new/a")
def every_module_is_on_a_floor(tree):
    for file in tree.package:
        if file.floor is None and file.room + file.stem != "__init__":
            yield f"{file.path}: is on no floor of source_tree.py"


@rule({"data/a": "def f():\n  from ..engine import b", "engine/b": "import focal_det.data.a"}, "data/a:2")
def imports_point_downwards(tree):
    for file in tree.package:
        for node, name in file.imports:
            other = tree.file_of(name) or file
            if None not in (file.floor, other.floor) and other.floor > file.floor:
                yield file.at(node, f"imports {name}, which is above")


MIXED = {"losses/ohem": "from ..errors import cut", "losses/box": "import torch\nfrom .ohem import f"}
MIXED["heirs/asymmetric"] = "from ..losses import ohem\nfrom detectron2.config import configurable"


@rule({**MIXED, "modeling/decode": "import numpy\nfrom ..losses import box", "errors": ""}, *MIXED, "modeling/decode")
def mathematics_imports_torch_alone(tree):
    rooms = ("losses", "heirs", "assigners")
    files = [f for f in tree.package if f.room in rooms or (f.room == "modeling" and f.stem in MATHEMATICS)]
    for file in files:
        allowed = {"torch", "torchvision", "triton" if file.stem == "triton_kernels" else "", *sys.stdlib_module_names}
        for _, name in file.imports:
            if name.split(".")[0] not in allowed and (file.stem in LEAVES or tree.file_of(name) not in files):
                yield f"{file.path}: imports {name}"


@rule({"data/__init__": "", **{f"data/m{i}": "" for i in range(17)}, "cli/a": ""}, "data/")
def a_folder_has_at_most_16_modules(tree):
    for folder, count in Counter(str(file.path.parent) for file in tree.package if not file.is_init).items():
        if count > 16:
            yield f"{folder}/: {count} modules"


@rule({"data/a": "#\n" * 14, **{f"m{i}/a": "#\n" * 12 for i in range(7)}, "a": "#\n" * 2}, "data/")
def a_room_has_at_most_13_percent_of_the_lines(tree):
    lines = Counter()
    for file in tree.package:
        lines[file.room] += file.lines
    for room, count in lines.items():
        if room and count > 0.13 * lines.total():
            yield f"focal_det/{room}/: {count / lines.total():.1%}"


@rule({"data/a": "#\n" * 301, "data/b": "#\n" * 300}, "data/a")
def a_module_has_at_most_300_lines(tree):
    return [f"{file.path}: {file.lines} lines" for file in tree.package if file.lines > 300]


@rule({"data/a": "#\n" * 39, "data/b": "#\n" * 40, "data/__init__": "", "cli/a": "", "losses/a": "", "a": ""}, "data/a")
def a_module_that_is_no_command_and_no_leaf_has_40_lines(tree):
    for file in tree.package:
        if file.lines < 40 and file.room not in ("", "cli", "losses", "modeling") and not file.is_init:
            yield f"{file.path}: {file.lines} lines; make it part of another"


@rule({"data/a": "", "engine/a": "", "cli/a": "", "data/__init__": "", "engine/__init__": ""}, "engine/a")
def a_file_name_is_there_once(tree):
    files = [file for file in tree.package if not file.is_init and file.room != "cli"]
    first = {file.stem: file for file in reversed(files)}
    return [f"{file.path}: also {first[file.stem].path}" for file in files if file is not first[file.stem]]


@rule({"data/a": "class A: pass\nclass B: pass", "engine/b": "class A: pass"}, "engine/b:1")
def a_class_name_is_there_once(tree):
    classes = [(file, node) for file in tree.package for node in file.find(ast.ClassDef)]
    first = {node.name: file for file, node in reversed(classes)}
    again = [(file, node) for file, node in classes if file is not first[node.name]]
    return [file.at(node, f"{node.name}: also in {first[node.name].path}") for file, node in again]


LAYOUT = "METRICS, RUNS, PERIODIC = 'metrics.json', 'runs', re.compile('model_.*')"
PATH_CALLS = re.compile(r"\bpath\.join$|\bjoinpath$|\b[ir]?glob$")
USES = """'''See metrics.json.'''
open(folder / "metrics.json")
print(f"{folder}/metrics.json", f"{folder}/model_{i:07d}.pth")
print({"runs": "see metrics.json"})
os.listdir(folder / "runs")
os.path.join(folder, "runs")
folder.glob("runs/*")
glob.glob("*/model_*.pth")
"""


@rule({"output_layout": LAYOUT, "data/a": USES}, *(f"data/a:{line}" for line in (2, 3, 3, 5, 6, 7, 8)))
def names_of_output_dir_are_in_output_layout_alone(tree):
    layout = tree.by_name["focal_det.output_layout"]
    assigned = [node for statement in layout.find(ast.Assign, ast.AnnAssign) for node in ast.walk(statement)]
    names = {node.value for node in assigned if isinstance(node, ast.Constant)}
    for file in tree.package:
        divided = [node for node in file.find(ast.BinOp) if isinstance(node.op, ast.Div)]
        joined = [node for node in file.find(ast.Call) if PATH_CALLS.search(ast.unparse(node.func))]
        in_paths = {side for node in divided for side in (node.left, node.right)}
        in_paths |= {argument for node in joined for argument in node.args}
        for node in file.strings if file is not layout else ():
            parts = node.value.split("/") if " " not in node.value else [""]  # a message may mention one
            # a plain word such as "annotations" is such a name only where it is part of a path
            if node in in_paths:
                found = any(part in names or part.startswith("model_") for part in parts)
            else:
                found = parts[-1] == "model_" or (parts[-1] in names and not parts[-1].isalpha())
            if found:
                yield file.at(node, repr(node.value))


WORDS = {"data/a": "# Mend it.\nx = '--pictures'\npicture_size = 1\n# It goes on."}
WORDS |= {"tests/test_a.py": "LEVERS = 'picture'\ndef test_it_goes_on(spoil): pass", "docs/a.md": "Go on\nwith it."}


@rule(WORDS, "data/a:1", "data/a:3", "data/a:4", *(f"tests/test_a.py:{line}" for line in (1, 2, 2)), "docs/a.md:1")
def words_are_those_of_the_field(tree):
    lines = [(f.path, *line) for f in (*tree.package, *tree.pages) for line in enumerate(f.text.splitlines(), 1)]
    names = [(file.path, *name) for file in tree.tests for name in file.names]
    for path, number, text in sorted(lines + names, key=lambda found: (found[0].parts[0] == "docs", *found)):
        if found := OTHER_WORDS.search(OLD_NAMES.sub("", text).replace("_", " ")):
            yield f"{path}:{number}: {found[0]}"


BEGINNINGS = ("Of a thing", "What is it", "Likewise", "Each one", "If so", "As told", "To do", "With it")
DOCSTRINGS = "".join(f"def f():\n  '{text}.'\n" for text in (*BEGINNINGS, "Often", "Whether", "Towards"))


@rule({"data/a": DOCSTRINGS}, *(f"data/a:{2 * i + 2}" for i in range(len(BEGINNINGS))))
def docstrings_begin_with_an_imperative_or_a_noun(tree):
    for file in tree.package:
        found = [n for n in file.docstrings if re.match(r"(Of|What is|Likewise|Each|If|As|To|With)\b", n.value)]
        yield from (file.at(node, node.value.splitlines()[0]) for node in found)


@rule({"data/__init__": "", "losses/__init__": "'''Losses.'''"}, "data/__init__")
def a_room_says_its_purpose(tree):
    return [f"{file.path}: has no docstring" for file in tree.package if file.is_init and not file.docstrings]


PRIVATES = {"engine/__init__": "'It touches _hooks.'", "data/b": "from .a import A\na._x\na._y", "data/c": "_y = 1"}
PRIVATES["data/a"] = """a._hooks
a._iter
self._x = os._exit
getattr(a, "_iter")
import threading
class A(threading.Thread):
  def _bootstrap(self): pass
  def _own(self): pass
"""


@rule(PRIVATES, "data/b:3", "data/a:2", "data/a:4", "data/a:7")
def private_names_of_others_are_listed_in_engine(tree):
    listed = DOCUMENTED.union(re.findall(r"\b_\w+", tree.by_name["focal_det.engine"].text))
    for file in tree.package:
        near = {tree.file_of(name) for _, name in file.imports} - {None}
        known = listed.union(file.defined, *(other.defined for other in near))
        yield from (file.at(node, name) for node, name in file.attributes if PRIVATE.match(name) and name not in known)
        for method, base in tree.methods_of_foreign_classes(file):
            if PRIVATE.match(method.name) and method.name not in listed and hasattr(base, method.name):
                yield file.at(method, f"{method.name} of {base.__name__}")


@rule({"cli/a": "signal.signal(2, f)", "engine/a": "from argparse import Action"}, "cli/a:1", "engine/a:1")
def things_are_done_in_one_place(tree):
    for file in tree.package:
        used = [*file.imports, *((node, ast.unparse(node)) for node in file.find(ast.Attribute))]
        for node, name in used:
            for what, place in ONE_PLACE.items():
                if f"{name}.".startswith(f"{what}.") and not str(file.path).startswith(place):
                    yield file.at(node, f"{what} is for {place} alone")


@rule({"data/a": "logger = logging.getLogger(__name__)\ndef f():\n  getLogger(__name__)"}, "data/a:3")
def a_module_has_its_logger_at_the_top(tree):
    for file in tree.package:
        for node in file.find(ast.Call):
            if ast.unparse(node).endswith("getLogger(__name__)") and not file.line(node).startswith("logger = "):
                yield file.at(node, file.line(node).strip())


@rule({"data/a": "def first_line(e):\n  return str(e).splitlines()[0]", "errors": "str(e).splitlines()[0]"}, "data/a:2")
def first_lines_of_errors_are_taken_in_errors_alone(tree):
    for file in tree.package:
        for node in file.find(ast.Subscript) if file.name != "focal_det.errors" else ():
            if re.match(r"\(?str\(\w+\)\.splitlines\(\).*\[0\]", ast.unparse(node)):
                yield file.at(node, "errors.first_line does it")


BARS = "tqdm(x, disable=None)\ntrange(9)\ntqdm(x, disable=few)\ntqdm.write(x)"


@rule({"data/a": BARS}, "data/a:2", "data/a:3")
def bars_are_for_terminals_alone(tree):
    """In a log each of their updates would be a line; tqdm takes None for that."""
    for file in tree.package:
        for node in file.find(ast.Call):
            shown = [word for word in node.keywords if word.arg == "disable" and "None" in ast.unparse(word.value)]
            if ast.unparse(node.func) in ("tqdm", "trange") and not shown:
                yield file.at(node, "disable=None keeps it out of logs")


@rule({"tests/test_a.py": "monkeypatch.setattr('focal_det.a.b', 1)\npatch.setattr(a, 'b', 1)"}, "tests/test_a.py:1")
def module_objects_are_patched_and_not_text_paths(tree):
    for file in tree.tests:
        for node in file.find(ast.Call):
            if ast.unparse(node.func).endswith("setattr") and ast.unparse(node.args[0]).startswith("'focal_det."):
                yield file.at(node, "import the module, and change it")


@rule({"data/a": "", "tests/data/test_a.py": "", "tests/data/test_b.py": ""}, "tests/data/test_b.py")
def the_tests_mirror_the_package(tree):
    for file in tree.tests:
        modules = {other.stem for other in tree.package if other.room == file.room}
        if file.is_test and file.stem.removeprefix("test_") not in modules | TOPICS.get(file.room, set()):
            yield f"{file.path}: focal_det/{file.room} has no such module"


ABOUT = {str(Path("tests", room, f"test_{topic}.py")): "" for room, topics in TOPICS.items() for topic in topics}


@rule({path: "" for path in ABOUT if path != "tests/formats/test_fuzzing.py"}, "tests/formats/test_fuzzing.py")
def a_topic_has_a_file(tree):
    return [f"{path}: is not there" for path in ABOUT if Path(path) not in {file.path for file in tree.tests}]


NEEDING = {"tests/help.py": "import detectron2\n@pytest.fixture\ndef tiny(): pass", "tests/test_a.py": "import help"}
NEEDING |= {"tests/test_b.py": "def test_b(tiny): pass", "tests/test_c.py": "pytestmark = pytest.mark.detectron2"}


@rule(NEEDING, "tests/test_a.py", "tests/test_b.py", "tests/test_c.py")
def files_are_marked_exactly_if_they_need_detectron2(tree):
    helpers = [file for file in tree.tests if not file.is_test and "detectron2" in tree.loaded_with([file.stem])]
    fixtures = {name for file in helpers for name in file.fixtures}
    for file in filter(lambda file: file.is_test, tree.tests):
        loaded = tree.loaded_with(name for _, name in file.imports)
        needed = "detectron2" in loaded or bool(fixtures & file.requested_fixtures)
        if needed != needs_detectron2(file.text):
            yield f"{file.path}: {'needs' if needed else 'does not need'} `pytestmark = pytest.mark.detectron2`"


@pytest.mark.parametrize(("check", "broken", "places"), RULES)
def test_a_violation_is_seen(check, broken, places):
    assert [message.split(": ")[0] for message in check(Tree(broken))] == places


@pytest.mark.parametrize(("check", "broken", "places"), RULES)
def test_the_project_keeps_to_it(check, broken, places):
    found = list(check(PROJECT))
    assert not found, "\n".join(found)
