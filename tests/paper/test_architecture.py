"""Figure 3: the shapes are those of the model that trains, and are what is drawn."""

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.cli.main import main
from focal_det.config.load import load_config
from focal_det.errors import InputError
from focal_det.paper.architecture import draw_architecture, read_architecture

pytestmark = pytest.mark.detectron2

PAPERS = "focal_det://paper/table1b.yaml"
TIMES = "\N{MULTIPLICATION SIGN}"


def architecture_of(*overrides, config=PAPERS):
    return read_architecture(load_config(config, list(overrides)))


def test_the_papers_detector_has_the_papers_shapes():
    found = architecture_of()
    # a 4:3 image of 600 px is 800 wide; padded to a multiple of 32, level l is 2^l smaller, the last two rounded up
    assert (found.backbone, found.image[1:]) == ("ResNet-50", (3, 608, 800))
    stages = [("res3", 512, 76, 100), ("res4", 1024, 38, 50), ("res5", 2048, 19, 25)]
    assert [tuple(stage) for stage in found.stages] == stages
    sizes = [(76, 100), (38, 50), (19, 25), (10, 13), (5, 7)]
    assert [tuple(level) for level in found.levels] == [(f"p{i + 3}", 256, *size) for i, size in enumerate(sizes)]
    assert (found.lateral, found.extra_from, found.extra) == (f"1{TIMES}1", "res5", f"3{TIMES}3, stride 2")
    for subnet, outputs in ((found.class_subnet, 80 * 9), (found.box_subnet, 4 * 9)):
        assert [conv.output[1:] for conv in subnet] == [(256, 76, 100)] * 4 + [(outputs, 76, 100)]
        assert {(conv.kernel, conv.stride) for conv in subnet} == {(f"3{TIMES}3", 1)}
    assert (found.num_classes, found.num_anchors) == (80, 9)


def test_the_shapes_are_those_that_the_quickstarts_model_computes():
    cfg = load_config("focal_det://quickstart.yaml", ["MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"])
    found = read_architecture(cfg)
    cfg.MODEL.WEIGHTS = ""
    model = build_model(cfg).eval()
    with torch.inference_mode():
        features = model.backbone(torch.zeros(1, *found.image[1:]))
        logits, deltas = model.head([features[name] for name in model.in_features])
    assert [tuple(features[level.name].shape[1:]) for level in found.levels] == [level[1:] for level in found.levels]
    assert logits[0].shape[1:] == found.class_subnet[-1].output[1:]
    assert deltas[0].shape[1:] == found.box_subnet[-1].output[1:]
    assert found.backbone == "ResNet-18"


def test_a_configurations_own_parts_are_read():
    found = architecture_of(
        *("MODEL.RETINANET.NUM_CONVS", "2", "MODEL.FPN.OUT_CHANNELS", "64", "MODEL.RETINANET.NUM_CLASSES", "5"),
        *("MODEL.FOCAL_DET.SCALES_PER_OCTAVE", "1", "MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS", "32"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
    )
    assert found.backbone == "ResNeXt-101"
    assert [conv.output.channels for conv in found.class_subnet] == [64, 64, 5 * 3]
    assert (found.num_classes, found.num_anchors) == (5, 3)


def test_every_shape_is_drawn():
    found = architecture_of()
    (axes,) = draw_architecture(found).axes
    texts = [text.get_text() for text in axes.texts]
    for shape in (*found.stages, *found.levels):
        assert shape.size in texts
    assert f"100{TIMES}76{TIMES}256" in texts
    assert [f"W{TIMES}H{TIMES}256  {TIMES}4" in texts, f"W{TIMES}H{TIMES}720" in texts] == [True, True]
    assert f"720 = 80 classes {TIMES} 9 anchors" in texts
    assert f"36 = 4 offsets {TIMES} 9 anchors" in texts


def test_boxes_of_each_class_are_counted():
    found = architecture_of("MODEL.FOCAL_DET.HEAD_NAME", "ClassSpecificBoxHead")
    texts = [text.get_text() for text in draw_architecture(found).axes[0].texts]
    assert f"2880 = 4 offsets {TIMES} 80 classes {TIMES} 9 anchors" in texts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["MODEL.RESNETS.DEPTH", "18"],
            "MODEL.RESNETS.RES2_OUT_CHANNELS is 256; it must be 64 for MODEL.RESNETS.DEPTH 18",
        ),
        (
            ["MODEL.RETINANET.IN_FEATURES", "['p9']"],
            r"does not make a model: ValueError: in_features .* is \['p9'\], but the backbone's features are p3",
        ),
        (["MODEL.FPN.IN_FEATURES", "['res9']"], "the configuration does not make a model: KeyError: 'res9'"),
        (["MODEL.RESNETS.DEPTH", "51"], "MODEL.RESNETS.DEPTH is 51; allowed are 18, 34, 50, 101, 152"),
        (["MODEL.FPN.OUT_CHANNELS", "0"], "MODEL.FPN.OUT_CHANNELS is 0; it must be in"),
        (["MODEL.RETINANET.NUM_CLASSES", "-5"], "MODEL.RETINANET.NUM_CLASSES is -5; it must be in"),
        (["INPUT.MAX_SIZE_TEST", "0"], "INPUT.MAX_SIZE_TEST is 0; it must be >= INPUT.MIN_SIZE_TEST"),
        (["INPUT.MIN_SIZE_TEST", "0"], "INPUT.MIN_SIZE_TEST is 0, with which images keep theirs; set a size"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(words, message):
    with pytest.raises(InputError, match=message):
        architecture_of(*words)


def test_what_cannot_be_drawn_is_named():
    message = r"MODEL.BACKBONE.NAME build_resnet_backbone, .*figure 3 shows a feature pyramid"
    with pytest.raises(InputError, match=message):
        architecture_of(
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
            *("MODEL.RETINANET.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"),
        )
    message = r"the classes of DATASETS.TEST \('nowhere',\) are not known; set MODEL.RETINANET.NUM_CLASSES"
    with pytest.raises(InputError, match=message):
        architecture_of("DATASETS.TEST", "('nowhere',)", "MODEL.RETINANET.NUM_CLASSES", "-1")


def test_the_command_writes_it(tmp_path, capsys):
    assert main(["plot", "architecture", PAPERS, "MODEL.RETINANET.NUM_CONVS", "1", "--out", str(tmp_path)]) == 0
    names = [tmp_path / f"figure3_architecture.{suffix}" for suffix in ("png", "svg")]
    assert capsys.readouterr().out.split() == [str(name) for name in names]
    assert all(name.stat().st_size > 0 for name in names)
    words = ["--config-file", PAPERS, "MODEL.META_ARCHITECTURE", "RetinaNet", "--out", str(tmp_path)]
    assert main(["plot", "architecture", *words]) == 2
    assert "only FocalRetinaNet can be drawn" in capsys.readouterr().err
