"""Each key of AUGMENT changes the images as it says, boxes follow, and all of it comes again from seed and position."""

import importlib.util
import itertools
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import example, given
from hypothesis import strategies as st

from focal_det.checkpoint.compatibility import build_parts
from focal_det.data.augmentation import ScaleJitter, training_mapper
from focal_det.data.train_loader import IMAGE, build_train_loader, check_own_augmentation, set_random_numbers
from focal_det.registries import AUGMENTATION_REGISTRY

pytestmark = pytest.mark.detectron2

AUGMENT = "MODEL.FOCAL_DET.AUGMENT."
# One white object of 60 x 30 px on blue.
BOX = (50, 40, 110, 70)
SIZE = ("INPUT.MIN_SIZE_TRAIN", "(120,)", "INPUT.RANDOM_FLIP", "none")
ALL = [
    *(AUGMENT + "SCALE_JITTER", "[0.5, 2.0]", AUGMENT + "ROTATION", "10", AUGMENT + "BRIGHTNESS", "0.2"),
    *(AUGMENT + "CONTRAST", "0.2", AUGMENT + "SATURATION", "0.2", AUGMENT + "LIGHTING", "0.1"),
]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    image = np.full((120, 160, 3), (90, 20, 10), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    path = str(tmp_path_factory.mktemp("image") / "a.png")
    cv2.imwrite(path, image)
    box = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    return {"file_name": path, "image_id": 1, "height": 120, "width": 160, "annotations": [box]}


def drawn(cfg, record, position=0):
    """The image (H, W, 3) and its boxes (N, 4) as they are at a position of the stream."""
    set_random_numbers(IMAGE, 3, position)
    found = training_mapper(cfg)(record)
    return found["image"].numpy().transpose(1, 2, 0), found["instances"].gt_boxes.tensor.numpy()


def white(image):
    """The box around what is white."""
    rows, columns = np.nonzero(image.min(axis=2) > 128)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_without_keys_it_is_detectron2s(tiny_cfg, record):
    cfg = tiny_cfg("INPUT.CROP.ENABLED", "True")
    set_random_numbers(IMAGE, 3, 0)
    of_floats = {**record["annotations"][0], "bbox": [*map(float, BOX)]}  # it rounds boxes of whole numbers
    theirs = DatasetMapper(cfg, True)({**record, "annotations": [of_floats]})
    image, boxes = drawn(cfg, record)
    assert (image == theirs["image"].numpy().transpose(1, 2, 0)).all()
    assert (boxes == theirs["instances"].gt_boxes.tensor.numpy()).all()


@pytest.mark.parametrize(("key", "value"), [*zip(ALL[::2], ALL[1::2], strict=True)])
def test_a_key_changes_pixels_and_those_of_geometry_boxes(tiny_cfg, record, key, value):
    (plain, box), (changed, moved) = drawn(tiny_cfg(*SIZE), record), drawn(tiny_cfg(*SIZE, key, value), record)
    assert changed.shape == plain.shape
    assert (changed != plain).any()
    assert (moved.tolist() != box.tolist()) is key.endswith(("SCALE_JITTER", "ROTATION"))


@pytest.mark.parametrize("words", [(AUGMENT + "SCALE_JITTER", "[0.5, 2.0]"), (AUGMENT + "ROTATION", "20")])
def test_boxes_are_around_what_they_were_around(tiny_cfg, record, words):
    cfg = tiny_cfg(*SIZE, *words)
    found = [drawn(cfg, record, position) for position in range(30)]
    shown = [(image, boxes[0]) for image, boxes in found if len(boxes)]
    assert len(shown) >= 25
    for image, box in shown:
        np.testing.assert_allclose(box, white(image), atol=1.5)  # pixels on the edge are blended
    assert len({tuple(box.round(3)) for _, box in shown}) >= 25  # each time another


def test_a_box_that_is_turned_is_the_one_around_it(tiny_cfg, record, monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high: high)
    _, ((x1, y1, x2, y2),) = drawn(tiny_cfg(*SIZE, AUGMENT + "ROTATION", "20"), record)
    # cos 20 = .9397, sin 20 = .3420: 60 * .9397 + 30 * .3420 = 66.6 wide, 30 * .9397 + 60 * .3420 = 48.7 high
    assert (x2 - x1, y2 - y1) == pytest.approx((66.64, 48.71), abs=0.01)


@example((5, 90), (0.1, 0.1), 5)  # 3 px high, of which a tenth would be none
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), st.integers(0)
)
def test_jitter_keeps_the_size_of_factor_1_whatever_the_image(sides, factors, seed):
    np.random.seed(seed % 2**32)
    resize = T.ResizeShortestEdge((3, 3), 10**6, "choice")
    aug_input = T.AugInput(np.full((*sides, 3), 7, np.uint8))
    expected = resize.get_transform(aug_input.image).apply_image(aug_input.image).shape
    ScaleJitter(resize, *sorted(factors))(aug_input)
    assert aug_input.image.shape == expected


def test_jitter_pads_at_the_right_and_below_in_grey(tiny_cfg, record):
    image, boxes = drawn(tiny_cfg(*SIZE, AUGMENT + "SCALE_JITTER", "[0.5, 0.5]"), record)
    np.testing.assert_allclose(boxes, [np.array(BOX) / 2])
    assert (image[60:] == 128).all()
    assert (image[:, 80:] == 128).all()
    assert not (image[:60, :80] == 128).all(axis=2).any()


@pytest.mark.parametrize("key", ["SATURATION", "LIGHTING"])
def test_colours_are_the_same_in_either_order_of_the_channels(tiny_cfg, record, key):
    bgr, rgb = (
        drawn(tiny_cfg(*SIZE, AUGMENT + key, "0.9", "INPUT.FORMAT", order), record)[0] for order in ("BGR", "RGB")
    )
    assert (bgr == rgb[:, :, ::-1]).all()


def test_lighting_moves_blue_by_what_its_scale_says(tiny_cfg, record, monkeypatch):
    monkeypatch.setattr(np.random, "normal", lambda scale, size: np.full(size, scale))
    image, _ = drawn(tiny_cfg(*SIZE, AUGMENT + "LIGHTING", "0.1"), record)
    # 25.5 * (.2175 * -.5675 + .0188 * .7192 + .0045 * .4009) = -2.8 of red's 10, which is cut to whole numbers
    assert image[0, 0, 2] == 7


def test_ones_own_come_last_in_the_order_of_their_names(tiny_cfg, record):
    @AUGMENTATION_REGISTRY.register()
    def grey(cfg):
        return T.ColorTransform(lambda image: np.full_like(image, 100))

    @AUGMENTATION_REGISTRY.register()
    def brighter(cfg):
        return [T.RandomBrightness(2, 2), T.HFlipTransform(160)]

    names = "('grey', 'brighter')"
    image, boxes = drawn(tiny_cfg(*SIZE, AUGMENT + "CONTRAST", "0.5", AUGMENT + "NAMES", names), record)
    assert (image == 200).all()
    assert boxes.tolist() == [[160 - BOX[2], BOX[1], 160 - BOX[0], BOX[3]]]
    image, _ = drawn(tiny_cfg(*SIZE, AUGMENT + "NAMES", "('brighter', 'grey')"), record)
    assert (image == 100).all()


def test_what_is_no_augmentation_is_named(tiny_cfg):
    @AUGMENTATION_REGISTRY.register()
    def wrong(cfg):
        return [T.NoOpTransform(), "blur"]

    with pytest.raises(TypeError, match=r"wrong of MODEL.FOCAL_DET.AUGMENT.NAMES returns str; it has to return one of"):
        training_mapper(tiny_cfg(AUGMENT + "NAMES", "wrong"))


def test_a_resumed_run_augments_as_an_uninterrupted_one(tiny_cfg, record):
    DatasetCatalog.register("five", lambda: [{**record, "image_id": i} for i in range(5)])
    words = ("DATASETS.TRAIN", "('five',)", "SEED", "3", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(60,)")

    def images(start, number, workers):
        loader = build_train_loader(tiny_cfg(*words, *ALL, "DATALOADER.NUM_WORKERS", workers))
        loader.start = start
        batches = itertools.islice(loader, number)
        return [[(one["image"].tolist(), one["instances"].gt_boxes.tensor.tolist()) for one in b] for b in batches]

    try:
        whole = images(0, 6, "0")
        assert images(2, 4, "2") == whole[2:]
        assert len({str(one) for batch in whole for one in batch}) == 12
    finally:
        DatasetCatalog.remove("five")


PAGE = (Path(__file__).parents[2] / "docs" / "few-images.md").read_text()
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


@pytest.fixture
def albumentations(monkeypatch):
    """The library; where it is missing something in its place, whose random numbers are its own as well."""

    class Compose:
        def __init__(self, steps):
            self.random = np.random.default_rng()

        def set_random_seed(self, seed):
            self.random = np.random.default_rng(seed)

        def __call__(self, *, image):
            return {"image": np.clip(image + self.random.normal(0, 9, image.shape), 0, 255).astype(np.uint8)}

    if importlib.util.find_spec("albumentations") is None:
        module = ModuleType("albumentations")
        module.Compose, module.GaussianBlur, module.ImageCompression = Compose, dict, dict
        monkeypatch.setitem(sys.modules, "albumentations", module)


@pytest.mark.usefixtures("albumentations")
def test_the_page_s_example_changes_pixels_alone_and_comes_again(tiny_cfg, record):
    exec(CODE, {})
    plain, cfg = tiny_cfg(*SIZE), tiny_cfg(*SIZE, AUGMENT + "NAMES", "blurred")
    check_own_augmentation(cfg)
    found = [drawn(cfg, record, position) for position in range(8)]
    assert any((image != drawn(plain, record)[0]).any() for image, _ in found)
    assert all(boxes.tolist() == [list(BOX)] for _, boxes in found)
    assert all((drawn(cfg, record, position)[0] == image).all() for position, (image, _) in enumerate(found))


@pytest.mark.usefixtures("albumentations")
def test_random_numbers_that_would_not_come_again_are_refused(tiny_cfg):
    exec(re.sub(r"self.compose.set_random_seed\(.*", "pass", CODE), {})
    with pytest.raises(ValueError, match=r"^blurred of MODEL.FOCAL_DET.AUGMENT.NAMES has random numbers of its own"):
        check_own_augmentation(tiny_cfg(*SIZE, AUGMENT + "NAMES", "blurred"))


def test_boxes_alone_that_would_not_come_again_are_refused(tiny_cfg):
    class Moved(T.NoOpTransform):
        def apply_coords(self, coords):
            return coords + numbers.normal()

    @AUGMENTATION_REGISTRY.register()
    def moved(cfg):
        return Moved()

    numbers = np.random
    check_own_augmentation(tiny_cfg(*SIZE, AUGMENT + "NAMES", "moved"))
    numbers = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^moved of MODEL.FOCAL_DET.AUGMENT.NAMES has random numbers of its own"):
        check_own_augmentation(tiny_cfg(*SIZE, AUGMENT + "NAMES", "moved"))


def test_one_s_own_that_fails_is_found_before_the_start(tiny_cfg):
    @AUGMENTATION_REGISTRY.register()
    def failing(cfg):
        return T.ColorTransform(lambda image: image[:, :, 3])

    _, found = build_parts(tiny_cfg(*SIZE, AUGMENT + "NAMES", "failing"))
    (problem,) = found.errors
    assert problem.startswith("the configuration does not make an augmentation: ValueError: failing of MODEL.FOCAL_DET")
    assert "fails on an image (120, 240, 3) of uint8 (IndexError: index 3 is out of bounds" in problem


def test_a_detector_that_trains_no_more_needs_none_of_them(tiny_cfg):
    cfg = tiny_cfg(*SIZE, AUGMENT + "NAMES", "of_another_process")
    assert "of_another_process" in build_parts(cfg)[1].errors[0]
    assert build_parts(cfg, training=False)[1].errors == []


def test_trying_them_leaves_the_random_numbers_as_they_are(tiny_cfg):
    @AUGMENTATION_REGISTRY.register()
    def drawing(cfg):
        return T.RandomBrightness(0.5, 1.5)

    def following():
        return random.random(), np.random.rand(), float(torch.rand(()))

    set_random_numbers(5)
    expected = following()
    set_random_numbers(5)
    check_own_augmentation(tiny_cfg(*SIZE, AUGMENT + "NAMES", "drawing"))
    assert following() == expected
