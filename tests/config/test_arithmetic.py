"""The arithmetic of Detectron2's YAML files is computed, and nothing else that a tag could run."""

import pytest
import yaml
from config_files import problems_of

from focal_det.config.arithmetic import ConfigLoader, compute
from focal_det.config.load import load_config
from focal_det.plain_data import parse_yaml

pytestmark = pytest.mark.detectron2

TAG = "!!python/object/apply:eval"
SIZES = "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"


def test_detectron2_s_anchors_are_what_detectron2_makes_of_them(tmp_path):
    (tmp_path / "base.yaml").write_text(f'MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: {TAG} ["{SIZES}"]\n')
    (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\n")
    sizes = load_config(tmp_path / "c.yaml").MODEL.ANCHOR_GENERATOR.SIZES
    assert sizes == [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * -3", -5),
        ("(4 - 1) / 2", 1.5),
        (" [2**-1, (1, +2)] ", [0.5, [1, 2]]),
        ("[x for x in (1, 2)]", [1, 2]),
        ("[[]]", [[]]),
    ],
)
def test_arithmetic_is_computed(text, value):
    assert compute(text) == value


REFUSED = """
__import__('os').getcwd()
x
'a' * 9
[1] * 9
[1] + [2]
True
None
1j
{}
1 if 1 else 2
lambda: 1
f'{1}'
1 // 2
1 % 2
1 << 3
~1
[x for x in range(5)]
[x for x in [1] if x]
[y for x in [1] for y in [x]]
[[y for y in [1]] for x in [1]]
[a for a, b in [[1, 2]]]
[(x := 1) for y in [1]]
(x for x in [1])
{x for x in [1]}
2**65
10**13
9**9**9
1e400
1e400 - 1e400
1 / 0
0**-1
(-8)**0.5
1 +
a b
[1, 2
"""
REFUSED = [*REFUSED.strip().splitlines(), "", "1\0", "9" * 150, "[" * 201, "1," * 101]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_more_than_arithmetic_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.dump({"SEED": "S"}).replace("S\n", f"{TAG} {yaml.dump([text], default_flow_style=True)}"))
    (problem,) = problems_of(path)
    assert problem.startswith(f"config file {path}: the tag {TAG} holds more than arithmetic (")
    assert problem.endswith(" at line 1; only plain data is allowed, so write the value out")


@pytest.mark.parametrize("node", ["1", "[]", "['1', '2']", "{a: 1}", "[['1']]"])
def test_a_tag_of_another_form_is_refused(tmp_path, node):
    (tmp_path / "c.yaml").write_text(f"SEED: {TAG} {node}\n")
    assert "only plain data is allowed, so write the value out" in problems_of(tmp_path / "c.yaml")[0]


def test_other_readers_of_yaml_refuse_it_and_repeated_ones_are_too_much():
    text = f"a: &a {TAG} ['[x for x in [1, 2]]']\n"
    assert parse_yaml(text, ConfigLoader) == {"a": [1, 2]}
    with pytest.raises(yaml.constructor.ConstructorError):
        parse_yaml(text)
    with pytest.raises(yaml.MarkedYAMLError, match="stands for more than 100000 values"):
        parse_yaml(f"{text}b: [{'*a, ' * 100}]\n", ConfigLoader)
