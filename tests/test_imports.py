"""What needs what: the mathematics stands on torch alone, and dependencies point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "focal_det"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Functions on tensors: of the packages, torch and torchvision's operators only.
MATHEMATICS = [
    name
    for name in MODULES
    if name.startswith("focal_det.losses.")
    or name.removeprefix("focal_det.modeling.")
    in ("anchors", "assignment", "box_coding", "criterion", "decode", "normalizer")
]
# The layers, lowest first; a module imports from its own layer's siblings and from below.
LAYERS = [
    ["focal_det.errors", "focal_det.files", "focal_det.plain_data", "focal_det.registries", "focal_det.config"],
    ["focal_det.losses"],
    ["focal_det.modeling"],
    ["focal_det.plugin"],
    ["focal_det.data"],
    ["focal_det.inference"],
    ["focal_det.evaluation"],
    ["focal_det.export"],
    ["focal_det.report"],
    ["focal_det.engine"],
    ["focal_det.paper"],
    ["focal_det.cli"],
]


def imports(name):
    """Absolute names of the modules that a module imports, also inside functions."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            full = ".".join(part for part in (base, node.module) if part)
            names = [f"{full}.{alias.name}" for alias in node.names]
            yield from (n if n in MODULES else full for n in names)


def layer(name):
    for height, prefixes in enumerate(LAYERS):
        if any(name == p or name.startswith(p + ".") for p in prefixes):
            return height
    return None


def test_the_walk_sees_relative_imports():
    assert "focal_det.losses.box" in set(imports("focal_det.modeling.criterion"))
    assert "focal_det.plugin" in set(imports("focal_det.engine.job"))


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_imports_torch_alone(name):
    roots = {module.split(".")[0] for module in imports(name)} - (
        {"triton"} if name.endswith("triton_kernels") else set()
    )
    assert roots <= {"torch", "torchvision", "focal_det", *sys.stdlib_module_names}
    ours = [module for module in imports(name) if module.startswith("focal_det")]
    assert all(module in (*MATHEMATICS, "focal_det.losses") for module in ours)


@pytest.mark.parametrize("name", [n for n in MODULES if layer(n) is not None])
def test_dependencies_point_one_way(name):
    heights = {module: layer(module) for module in imports(name) if module.startswith("focal_det.")}
    assert [module for module, height in heights.items() if height is not None and height > layer(name)] == []


LEAVES = [
    "losses.formula",
    "losses.box",
    *(f"modeling.{n}" for n in ("anchors", "assignment", "box_coding", "normalizer")),
]


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_modules_import_none_of_ours(name):
    assert [module for module in imports(f"focal_det.{name}") if module.startswith("focal_det")] == []


def test_every_module_has_a_layer():
    assert [name for name in MODULES if layer(name) is None] == ["focal_det"]


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "detectron2":
            raise ImportError("detectron2 is blocked")
sys.meta_path.insert(0, Blocker())
"""


def run_without_detectron2(code):
    command = [sys.executable, "-c", BLOCKED + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)


def test_mathematics_and_inference_work_without_detectron2():
    inference = [name for name in MODULES if name.startswith("focal_det.inference")]
    code = "import importlib; [importlib.import_module(m) for m in %r]" % ["focal_det", *MATHEMATICS, *inference]
    done = run_without_detectron2(code)
    assert done.returncode == 0, done.stderr


def test_the_plugin_says_what_to_do_without_detectron2():
    done = run_without_detectron2("import focal_det.plugin")
    assert done.returncode == 1
    assert "Run `make setup`, with DETECTRON2=" in done.stderr


def test_the_predictor_is_named_by_the_package_and_asks_for_detectron2_only_when_used():
    done = run_without_detectron2("import focal_det; assert 'Predictor' in focal_det.__all__; focal_det.Predictor")
    assert done.returncode == 1
    assert "Run `make setup`, with DETECTRON2=" in done.stderr


def test_train_net_without_detectron2_is_bad_input_and_no_stack_trace():
    done = run_without_detectron2("from focal_det.cli.train import main; sys.exit(main([]))")
    assert done.returncode == 2
    assert done.stderr.startswith("error: focal_det trains and detects through Detectron2")
    assert "Traceback" not in done.stderr
