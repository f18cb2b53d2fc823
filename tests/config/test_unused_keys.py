"""A key that the chosen loss or architecture does not read is refused, and not saved."""

import inspect

import pytest
import torch
import yaml
from config_files import problems_of, write_layers
from detectron2.config import get_cfg
from torch import nn

from focal_det.config.load import load_config
from focal_det.config.read_when import WITHOUT_KERNEL
from focal_det.config.unused_keys import without_unread_keys
from focal_det.config.validate import check_config
from focal_det.defaults import add_focal_det_config
from focal_det.heirs import asymmetric_loss
from focal_det.heirs.class_balanced import class_weights
from focal_det.modeling.dense_losses import FocalLoss
from focal_det.registries import DENSE_LOSS_REGISTRY

pytestmark = pytest.mark.detectron2

LOSS = "MODEL.FOCAL_DET.LOSS."


class ZeroLoss(nn.Module):
    """A loss of one's own."""

    def __init__(self, cfg):
        super().__init__()

    def forward(self, logits, labels):
        return logits.sum() * 0


# Of each loss the keys it reads, and what they make of it.
CONSTANTS = {
    "CrossEntropyLoss": ({}, lambda loss: loss.formula[1:5] == ("cross_entropy", (1, 1), 0, 0)),
    "BalancedCrossEntropyLoss": ({"ALPHA": 0.3}, lambda loss: loss.formula[1:5] == ("cross_entropy", (0.3, 0.7), 0, 0)),
    "FocalLossStar": (
        {"GAMMA": 4.0, "BETA": -0.5},
        lambda loss: loss.formula[1:5] == ("focal_star", (1, 1), 4.0, -0.5),
    ),
    "HingeLoss": ({"MARGIN": 0.8}, lambda loss: loss.formula[1:5] == ("hinge", (1, 1), 0, 0.8)),
    "OHEMLoss": (
        {"BATCH_SIZE": 32, "NMS_THRESH": 0.7},
        lambda loss: (loss.batch_size, loss.nms_threshold) == (32, 0.7),
    ),
    "OHEMOneToThreeLoss": (
        {"BATCH_SIZE": 32, "NMS_THRESH": 0.7},
        lambda loss: (loss.batch_size, loss.nms_threshold) == (32, 0.7),
    ),
    "QualityFocalLoss": ({"GAMMA": 1.5}, lambda loss: loss.formula.soft_terms.keywords == {"beta": 1.5}),
    "VarifocalLoss": (
        {"ALPHA": 0.3, "GAMMA": 1.5},
        lambda loss: loss.formula.plain.keywords == {"alpha": 0.3, "gamma": 1.5},
    ),
    "AsymmetricLoss": (
        {"GAMMA_POS": 1.0, "GAMMA_NEG": 3.0, "PROB_SHIFT": 0.2},
        lambda loss: loss(ONE_OF_3, torch.tensor([0])) == asymmetric_loss(ONE_OF_3, torch.tensor([0]), **ASYMMETRIC),
    ),
    "ClassBalancedFocalLoss": (
        {"CB_BETA": 0.5, "CLASS_BOXES": [9, 2, 1]},
        lambda loss: torch.equal(loss.label_weights[:3], class_weights([9, 2, 1], 0.5).float()),
    ),
    "FederatedFocalLoss": (
        {"FED_NUM_CLASSES": 2, "FED_FREQ_POWER": 1.0, "CLASS_IMAGES": [9, 2, 1]},
        lambda loss: (
            (loss.class_images.tolist(), loss.sample.keywords) == ([9, 2, 1], {"num_classes": 2, "power": 1.0})
        ),
    ),
}
ONE_OF_3 = torch.tensor([[0.5, 1.0, -1.0]])
ASYMMETRIC = {"gamma_pos": 1.0, "gamma_neg": 3.0, "prob_shift": 0.2}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_registered_loss_reads_its_constants_and_only_they_are_saved(tiny_cfg, name):
    constants, holds = CONSTANTS[name]
    overrides = [word for key, value in constants.items() for word in (LOSS + key, str(value))]
    cfg = tiny_cfg(LOSS + "NAME", name, *overrides)
    loss = DENSE_LOSS_REGISTRY.get(name)(cfg)
    assert holds(loss)
    assert set(without_unread_keys(cfg).MODEL.FOCAL_DET.LOSS) == {"NAME", *constants}
    assert {key for key in loss.reads if key.startswith(LOSS)} == {LOSS + key for key in constants}


def test_the_focal_loss_reads_its_constants_where_detectron2_has_them(tiny_cfg):
    loss = FocalLoss(tiny_cfg("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "0.5"))
    assert loss.formula[1:5] == ("focal", (1, 1), 0.5, 0)


def test_every_registered_loss_is_tested():
    assert {name for name, _ in DENSE_LOSS_REGISTRY} == {*CONSTANTS, "FocalLoss"}


OF_GAMMA = "FocalLoss or ClassBalancedFocalLoss or FederatedFocalLoss"
# A key, a value, the loss that is chosen, what that loss reads, and the losses that read the key.
OF_ALPHA = "BalancedCrossEntropyLoss or VarifocalLoss"
FOREIGN = [
    (LOSS + "ALPHA", "0.5", "FocalLoss", " and ".join(FocalLoss.reads), OF_ALPHA),
    (LOSS + "ALPHA", "0.75", "CrossEntropyLoss", "no key", OF_ALPHA),  # its default, but meant
    (LOSS + "NMS_THRESH", "0.7", "FocalLossStar", f"{LOSS}GAMMA and {LOSS}BETA", "OHEMLoss or OHEMOneToThreeLoss"),
    ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", "2.0", "HingeLoss", f"{LOSS}MARGIN", OF_GAMMA),  # likewise
]
OURS = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet"]


@pytest.mark.parametrize(("key", "value", "name", "reads", "readers"), FOREIGN)
def test_a_key_of_another_loss_is_refused(key, value, name, reads, readers):
    assert problems_of("", [*OURS, LOSS + "NAME", name, key, value]) == [
        f"command line: {key} is {value}, but the loss is {name}, which reads {reads}: "
        f"remove it, or set {LOSS}NAME to {readers}"
    ]


BASE = "MODEL: {META_ARCHITECTURE: FocalRetinaNet}\n"


def loss_layer(**keys):
    return yaml.safe_dump({"MODEL": {"FOCAL_DET": {"LOSS": keys}}})


def test_a_key_of_another_loss_in_a_file_is_refused_where_it_stands(tmp_path):
    base = BASE.replace("}", ", RETINANET: {FOCAL_LOSS_GAMMA: 1.0, FOCAL_LOSS_ALPHA: '0.25'}}")
    path = write_layers(tmp_path, base=base, top=loss_layer(BETA=1.0))
    assert [problem.split(",")[0] for problem in problems_of(path)] == [f"{path}: {LOSS}BETA is 1.0"]
    path = write_layers(tmp_path, base=BASE, middle=loss_layer(NAME="HingeLoss", BETA=1.0), top="SEED: 1\n")
    assert [problem.split(",")[0] for problem in problems_of(path)] == [
        f"{tmp_path / 'middle.yaml'}: {LOSS}BETA is 1.0"
    ]


def test_a_layer_that_names_another_loss_leaves_the_constants_below_it_behind(tmp_path):
    base = BASE + "SOLVER: {BASE_LR: 0.5}\n"
    path = write_layers(
        tmp_path,
        base=base,
        hinge=loss_layer(NAME="HingeLoss", MARGIN=0.4),
        ohem=loss_layer(NAME="OHEMLoss", BATCH_SIZE=512),
        one_to_three=loss_layer(NAME="OHEMOneToThreeLoss"),
    )
    loss = load_config(path).MODEL.FOCAL_DET.LOSS
    assert (loss.NAME, loss.MARGIN, loss.BATCH_SIZE) == ("OHEMOneToThreeLoss", 0.5, 512)  # both miners read the last
    path.write_text(BASE.replace("}", ", RETINANET: {FOCAL_LOSS_GAMMA: 1.0}}"))
    cfg = load_config(path, [LOSS + "NAME", "HingeLoss", LOSS + "MARGIN", "0.3"])
    assert (cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA, cfg.MODEL.FOCAL_DET.LOSS.MARGIN) == (2.0, 0.3)


def test_a_file_may_leave_the_loss_of_its_constants_to_the_command_line(tmp_path):
    path = write_layers(tmp_path, base=BASE, top=loss_layer(NAME="HingeLoss", MARGIN=0.4))
    assert load_config(path, [LOSS + "NAME", "HingeLoss"]).MODEL.FOCAL_DET.LOSS.MARGIN == 0.4


@pytest.mark.parametrize("name", [*CONSTANTS, "FocalLoss"])
def test_a_saved_configuration_can_be_read_again_and_given_another_loss(tiny_cfg, tmp_path, name):
    saved = tiny_cfg(LOSS + "NAME", name)
    path = tmp_path / "c.yaml"
    path.write_text(without_unread_keys(saved).dump())
    assert yaml.safe_load(load_config(path).dump()) == yaml.safe_load(saved.dump())
    assert load_config(path, [LOSS + "NAME", "HingeLoss", LOSS + "MARGIN", "0.7"]).MODEL.FOCAL_DET.LOSS.MARGIN == 0.7


def test_detectron2s_detector_has_a_loss_of_its_own(tmp_path):
    overrides = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    assert problems_of("", [*overrides, LOSS + "NAME", "OHEMLoss"]) == [
        f"command line: {LOSS}NAME is OHEMLoss, but MODEL.META_ARCHITECTURE RetinaNet has a loss of its own: "
        "remove it, or set MODEL.META_ARCHITECTURE to FocalRetinaNet"
    ]
    saved = without_unread_keys(load_config("", [*overrides, "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "3.0"]))
    (tmp_path / "c.yaml").write_text(saved.dump())
    assert load_config(tmp_path / "c.yaml").MODEL.RETINANET.FOCAL_LOSS_GAMMA == 3.0


def test_detectron2s_detector_has_no_speed_options():
    overrides = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    (problem,) = problems_of("", [*overrides, "MODEL.FOCAL_DET.SPEED.COMPILE", "True"])
    assert problem.startswith("command line: MODEL.FOCAL_DET.SPEED.COMPILE is True, but MODEL.META_ARCHITECTURE")
    (problem,) = problems_of("", [*overrides, "MODEL.FOCAL_DET.SPEED.PAD_TO", "[[64, 64]]"])
    assert problem.startswith("command line: MODEL.FOCAL_DET.SPEED.PAD_TO is [[64, 64]], but MODEL.META_ARCHITECTURE")
    load_config("", [*overrides, "MODEL.FOCAL_DET.SPEED.FUSED_SGD", "True"])  # the trainer reads this one


def test_a_loss_of_ones_own_may_set_any_key(monkeypatch):
    monkeypatch.setitem(DENSE_LOSS_REGISTRY._obj_map, "ZeroLoss", ZeroLoss)
    cfg = load_config("", [*OURS, LOSS + "NAME", "ZeroLoss", LOSS + "BETA", "3", LOSS + "MARGIN", "7"])
    assert (cfg.MODEL.FOCAL_DET.LOSS.BETA, cfg.MODEL.FOCAL_DET.LOSS.MARGIN) == (3.0, 7.0)
    assert check_config(cfg, num_processes=1, training=False).errors[-1].startswith("--eval-only")
    assert without_unread_keys(cfg).MODEL.FOCAL_DET.LOSS == cfg.MODEL.FOCAL_DET.LOSS


def test_classes_of_weights_need_weights():
    words = [*OURS, "MODEL.FOCAL_DET.WEIGHTS_CLASSES", "coco_2017_train"]
    (problem,) = problems_of("", words)
    assert problem.endswith("but is read only with MODEL.WEIGHTS of a detector to start from: set that, or remove it")
    load_config("", [*words, "MODEL.WEIGHTS", "a.pth"])


def test_a_loss_has_kernels_or_is_named_as_one_without():
    ours = {name: loss for name, loss in DENSE_LOSS_REGISTRY if loss.__module__.startswith("focal_det.")}
    without = {name for name, loss in ours.items() if "triton" not in inspect.signature(loss.__init__).parameters}
    assert without == set(WITHOUT_KERNEL)


def error_of(*words):
    (problem,) = problems_of("", ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", *words])
    return problem


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", "80", "set MODEL.RETINANET.NUM_CLASSES"),  # in the command line at the default
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", "set MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.3", "set MODEL.RETINANET.NMS_THRESH_TEST"),
        ("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "128", "remove it, every anchor counts"),
        ("MODEL.RPN.POST_NMS_TOPK_TEST", "10", "set TEST.DETECTIONS_PER_IMAGE"),
        ("MODEL.MASK_ON", "True", "boxes alone are detected"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "remove it"),
        ("DATASETS.PROPOSAL_FILES_TRAIN", "a.pkl", "remove it"),
    ],
)
def test_a_key_of_another_detector_is_refused_with_what_is_meant(key, value, meant):
    problem = error_of(key, value)
    assert problem.startswith(f"command line: {key} is ")
    assert "but MODEL.META_ARCHITECTURE FocalRetinaNet does not read it: " in problem
    assert problem.endswith(meant) or meant in problem


def test_a_file_may_hold_another_detectors_keys_at_their_defaults(tmp_path):
    cfg = get_cfg()
    add_focal_det_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    (tmp_path / "c.yaml").write_text(without_unread_keys(cfg).dump())
    load_config(tmp_path / "c.yaml")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    (tmp_path / "c.yaml").write_text(without_unread_keys(cfg).dump())
    (problem,) = problems_of(tmp_path / "c.yaml")
    assert problem.startswith(f"{tmp_path / 'c.yaml'}: MODEL.ROI_HEADS.NUM_CLASSES is 5")


def test_another_architecture_may_read_the_keys_of_its_own():
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NUM_CLASSES", "5"])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5
