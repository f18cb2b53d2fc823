"""docs/serving.md: its programs run on an exported file, and Triton's configuration describes that file."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import onnx
import pytest
from export_fixtures import images
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

pytestmark = pytest.mark.detectron2

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
# Numbers of fields and enumerators as in Triton's model_config.proto.
TYPES = {"TYPE_UINT8": (2, "UINT8"), "TYPE_INT64": (9, "INT64"), "TYPE_FP32": (11, "FLOAT")}


def block(section, language):
    """The last code block of a section."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for found, code in blocks if found == language][-1]


def triton_config(text):
    """Parse a config.pbtxt by the part of Triton's schema that the page uses."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for name, number in [("TYPE_INVALID", 0), *((name, number) for name, (number, _) in TYPES.items())]:
        enum.value.add(name=name, number=number)
    for kind in ("ModelInput", "ModelOutput"):
        message = file.message_type.add(name=kind)
        message.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        types = {"type": field.TYPE_ENUM, "type_name": ".inference.DataType"}
        message.field.add(name="data_type", number=2, label=field.LABEL_OPTIONAL, **types)
        dims = 4 if kind == "ModelInput" else 3
        message.field.add(name="dims", number=dims, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    config = file.message_type.add(name="ModelConfig")
    for name, number, kind in (("name", 1, "STRING"), ("max_batch_size", 4, "INT32"), ("backend", 17, "STRING")):
        config.field.add(name=name, number=number, type=getattr(field, f"TYPE_{kind}"), label=field.LABEL_OPTIONAL)
    for name, number, kind in (("input", 5, "ModelInput"), ("output", 6, "ModelOutput")):
        types = {"type": field.TYPE_MESSAGE, "type_name": f".inference.{kind}"}
        config.field.add(name=name, number=number, label=field.LABEL_REPEATED, **types)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, made())


def test_triton_s_configuration_describes_the_file(plain_onnx):
    config, graph = triton_config(block("NVIDIA Triton", "")), onnx.load(plain_onnx).graph
    assert (config.name, config.backend, config.max_batch_size) == ("mine", "onnxruntime", 0)
    assert f"triton/{config.name}/1/model.onnx" in PAGE
    for values, described in ((graph.input, config.input), (graph.output, config.output)):
        numbers = {getattr(onnx.TensorProto, kind): number for number, kind in TYPES.values()}
        found = [
            (
                value.name,
                numbers[value.type.tensor_type.elem_type],
                [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]
        assert [(each.name, each.data_type, list(each.dims)) for each in described] == found


def test_a_misspelt_configuration_is_seen():
    with pytest.raises(text_format.ParseError, match="TYPE_FLOAT32"):
        triton_config('output [ { name: "boxes" data_type: TYPE_FLOAT32 } ]')


@pytest.fixture
def picked(plain_onnx, tmp_path):
    """A folder as the page's reader has it: mine.onnx, its card, and a.jpg."""
    for suffix in ("", ".card.json"):
        (tmp_path / f"mine.onnx{suffix}").symlink_to(f"{plain_onnx}{suffix}")
    cv2.imwrite(str(tmp_path / "a.jpg"), images([(90, 120)], seed=6)[0])
    return tmp_path


def run(folder, code, *arguments):
    (folder / "program.py").write_text(code)
    command = [sys.executable, "program.py", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_onnxruntime_in_python(picked, monkeypatch, capsys):
    monkeypatch.chdir(picked)
    code = block("onnxruntime", "python")
    exec(compile(code.replace("score_thresh=0.4", "score_thresh=0.3"), "page", "exec"), {})
    assert "array" not in (said := capsys.readouterr().out)
    assert re.search(r"'[abc]'", said)


def test_openvino_prints_what_onnxruntime_prints(picked):
    pytest.importorskip("openvino")
    own_data = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text()
    detect = re.search(r"```python\n(import json, sys\nimport numpy as np, onnxruntime.*?)```", own_data, re.DOTALL)[1]
    lines, expected = (
        [line.split() for line in run(picked, code, "mine.onnx", "a.jpg").splitlines()]
        for code in (block("OpenVINO", "python"), detect)
    )
    assert len(lines) == len(expected) > 10
    for one, other in zip(lines, expected, strict=True):
        assert one[:2] == other[:2]
        assert [float(x) for x in one[2:]] == pytest.approx([float(x) for x in other[2:]], abs=1)
