"""Tiles as images to train on: what each shows, in its pixels, and all that holds for images holds for them."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from focal_det.data.augmentation import training_mapper
from focal_det.data.image_mapper import ImageMapper
from focal_det.data.tile_records import IGNORED, counted_records, cut_records
from focal_det.data.tiling import Tiles
from focal_det.data.train_loader import BrokenImageError, TrainLoader, build_train_loader
from focal_det.engine.validation_loss import ValidationLoss

pytestmark = pytest.mark.detectron2

TILES = ("MODEL.FOCAL_DET.TILES.SIZE", "100", "MODEL.FOCAL_DET.TILES.OVERLAP", "0.2")
# In tiles at 0, 80, 100 px: the first is whole in the left one, and too little of it in the next; the second is there
# in all three; the crowd is nobody's.
BOXES = [(60, 20, 84, 50, 0), (82, 30, 98, 60, 2)]
CROWD = {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """An image of 200 x 90 px, in which each pixel tells its place."""
    rows, columns = np.indices((90, 200))
    image = np.stack([columns, rows, np.full_like(rows, 7)], axis=2).astype(np.uint8)
    path = str(tmp_path_factory.mktemp("image") / "a.png")
    cv2.imwrite(path, image)
    annotations = [
        {"bbox": (x0, y0, x1 - x0, y1 - y0), "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "segmentation": [[]]}
        for x0, y0, x1, y1, label in BOXES
    ]
    return {"file_name": path, "image_id": 5, "height": 90, "width": 200, "annotations": [*annotations, CROWD]}


def objects_of(record):
    return [(*map(int, a["bbox"]), a["category_id"]) for a in record["annotations"]]


def test_an_image_is_cut_where_detecting_cuts_it_and_is_there_as_a_whole(record):
    whole, *tiles = cut_records([record], Tiles(100, 0.2))
    assert whole is record
    assert [tile["tile"] for tile in tiles] == [[0, 0, 100, 90], [80, 0, 180, 90], [100, 0, 200, 90]]
    assert [(tile["width"], tile["height"], tile["image_id"]) for tile in tiles] == [(100, 90, 5)] * 3
    assert [objects_of(tile) for tile in tiles] == [
        [(60, 20, 84, 50, 0), (82, 30, 98, 60, 2)],
        [(2, 30, 18, 60, 2)],
        [],
    ]
    assert counted_records([whole, *tiles]) == "1 image and 3 tiles"
    assert counted_records([whole, whole]) == "2 images"
    assert [tile["cut_parts"] for tile in tiles] == [[], [[0, 20, 4, 50]], []]


def test_one_tile_is_the_image_and_tiles_without_objects_are_filtered_as_images_are(record):
    assert cut_records([record], Tiles(200, 0.2)) == [record]
    assert cut_records([record], Tiles()) == [record]
    found = cut_records([record, {**record, "annotations": []}], Tiles(100, 0.2), filter_empty=True)
    assert [part.get("tile", [None])[0] for part in found] == [None, 0, 80, None]


def test_boxes_may_be_in_another_form_and_reach_out_of_the_image(record):
    far = {"bbox": [-40, 0, 20, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}  # a third of it, but all there is
    near = {"bbox": [10, 10, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    turned = {"bbox": [30, 40, 20, 10, 90], "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 2}
    _, left, *_ = cut_records([{**record, "annotations": [far, near, turned]}], Tiles(100, 0.2))
    assert objects_of(left) == [(0, 0, 20, 10, 1), (10, 10, 20, 20, 0), (25, 30, 35, 50, 2)]


def test_what_is_no_list_is_not_cut(record):
    with pytest.raises(ValueError, match=r"TILES\.SIZE is 64, but DatasetFromFunction is no list of records to cut"):
        cut_records(type("DatasetFromFunction", (), {})(), Tiles(64))
    assert cut_records(None, Tiles()) is None


# --- mapped -----------------------------------------------------------------------------------------------------------

SAME = ("INPUT.MIN_SIZE_TRAIN", "(90,)", "INPUT.RANDOM_FLIP", "none")


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_a_tile_is_mapped_to_its_pixels_with_parts_to_be_ignored(tiny_cfg, record, order):
    mapper = training_mapper(tiny_cfg(*SAME, "INPUT.FORMAT", order))
    _, _, middle, right = cut_records([record], Tiles(100, 0.2))
    found = mapper(middle)
    assert (found["height"], found["width"], found["image"].shape) == (90, 100, (3, 90, 100))
    assert (found["image"][0 if order == "BGR" else 2] == torch.arange(80, 180)).all()
    assert found["instances"].gt_boxes.tensor.tolist() == [[2, 30, 18, 60], [0, 20, 4, 50]]
    assert found["instances"].gt_classes.tolist() == [2, IGNORED]
    assert len(mapper(right)["instances"]) == 0
    assert mapper(record)["image"].shape == (3, 90, 200)


def test_augmentation_follows_the_cut(tiny_cfg, record, monkeypatch):
    monkeypatch.setattr(np.random, "uniform", lambda low, high, size=None: low if size is None else np.full(size, low))
    _, left, middle, _ = cut_records([record], Tiles(100, 0.2))
    flipped = training_mapper(tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(180,)"))(middle)
    assert flipped["instances"].gt_boxes.tensor.tolist() == [[164, 60, 196, 120], [192, 40, 200, 100]]
    # By 20 degrees a box 24 wide and 30 high, uncut or not, is one of 24 cos + 30 sin = 32.8 by 24 sin + 30 cos = 36.4.
    turned = training_mapper(tiny_cfg(*SAME, "MODEL.FOCAL_DET.AUGMENT.ROTATION", "20"))(left)
    sides = turned["instances"].gt_boxes.tensor[0].unflatten(0, (2, 2)).diff(dim=0)[0]
    assert sides.tolist() == pytest.approx([32.81, 36.4], abs=0.01)


@pytest.mark.parametrize("order", ["BGR", "RGB"])
@pytest.mark.parametrize(("mode", "turn"), [("RGB", 1), ("RGB", 6), ("RGB", 3), ("L", 1), ("P", 1), ("RGBA", 1)])
def test_pixels_are_those_of_detectron2s_reader(tmp_path, mode, turn, order):
    pixels, exif = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8), Image.Exif()
    exif[0x0112] = turn
    path = str(tmp_path / ("a.jpg" if mode == "RGB" else "a.png"))
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    whole = utils.read_image(path, format=order)
    height, width = whole.shape[:2]
    (_, *tiles), mapper = (
        cut_records([{"file_name": path, "height": height, "width": width, "annotations": []}], Tiles(40, 0.2)),
        ImageMapper(True, augmentations=[], image_format=order),
    )
    assert len(tiles) == 6
    for tile in tiles:
        left, top, right, bottom = tile["tile"]
        assert (mapper(tile)["image"].numpy().transpose(1, 2, 0) == whole[top:bottom, left:right]).all()


def test_a_file_of_another_size_is_named_as_for_images(tiny_cfg, record):
    _, left, *_ = cut_records([{**record, "width": 210}], Tiles(100, 0.2))
    with pytest.raises(Exception, match="Mismatched image shape"):
        ImageMapper(tiny_cfg(*SAME), True)(left)


# --- drawn by the loader ----------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(tiny_cfg, record):
    """Returns a function that makes the configuration of four images, two of them cut, one of these without objects."""
    small = {**record, "annotations": record["annotations"][:1]}
    images = [record, {**record, "image_id": 6, "annotations": []}, {**small, "image_id": 7}, {**small, "image_id": 8}]
    DatasetCatalog.register("four", lambda: images)
    MetadataCatalog.get("four").thing_classes = ["a", "b", "c"]
    words = ("DATASETS.TRAIN", "('four',)", "SEED", "3", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS")
    yield lambda *more, workers="0": tiny_cfg(*words, workers, *SAME[:2], *TILES, *more)
    DatasetCatalog.remove("four")
    MetadataCatalog.remove("four")


def drawn(cfg, number, start=0):
    loader = build_train_loader(cfg)
    loader.start = start
    batches = itertools.islice(loader, number)
    return [[(one["image"].tolist(), one["instances"].gt_boxes.tensor.tolist()) for one in b] for b in batches]


def test_a_resumed_training_sees_the_same_tiles_with_the_same_augmentation(loaded):
    augment = "MODEL.FOCAL_DET.AUGMENT.BRIGHTNESS", "0.3"
    whole = drawn(loaded(*augment), 9)
    assert drawn(loaded(*augment, workers="2"), 6, start=3) == whole[3:]
    assert len({len(one[0][0][0]) for batch in whole for one in batch}) == 2  # widths: of tiles, and of images


def test_all_ranks_together_draw_each_record_once_an_epoch_in_batches_of_one_shape(loaded, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda data: [data])
    cfg, seen = loaded("INPUT.RANDOM_FLIP", "none"), []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        loader = build_train_loader(cfg)
        assert isinstance(loader, TrainLoader)
        batches = list(itertools.islice(loader, 50))
        seen += [one for batch in batches for one in batch]
    # Three images with objects as a whole, two tiles of the first and one of each of the others.
    keys = [(one["image_id"], one["width"]) for one in seen]
    assert len(loader.dataset) == 7
    assert {key: round(keys.count(key) / 100 * 7) for key in keys} == {
        **{(image, 200): 1 for image in (5, 7, 8)},
        **{(5, 100): 2, (7, 100): 1, (8, 100): 1},
    }


def test_tiles_of_wide_images_do_not_meet_what_is_high(loaded):
    # tiles of 64 px are squares, and so with the high; the images themselves are wide
    cfg = loaded("SOLVER.IMS_PER_BATCH", "4", "MODEL.FOCAL_DET.TILES.SIZE", "64")
    for batch in itertools.islice(build_train_loader(cfg), 12):
        assert len({one["image"].shape for one in batch}) == 1


def test_rare_classes_are_counted_by_tiles_without_what_is_cut_off(loaded):
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", "1.0")
    cfg = loaded(*sampler, "DATALOADER.REPEAT_SQRT", "False", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    images = [one for batch in itertools.islice(build_train_loader(cfg), 200) for one in batch]
    # Of 7 records 6 have class 0, 3 class 2 and one, an image, a crowd of class 1: factors 7/6, 7/3 and 7. The tile in
    # the middle, alone to have a part of an object, has class 2.
    middle = sum(one["instances"].gt_classes.tolist() == [2, IGNORED] for one in images)
    assert middle / len(images) == pytest.approx((7 / 3) / (7 + 2 * 7 / 3 + 4 * 7 / 6), abs=0.02)


def test_a_mapper_of_ones_own_maps_tiles_if_it_is_detectron2s(loaded):
    cfg = loaded("INPUT.RANDOM_FLIP", "none")
    images = [one for b in itertools.islice(build_train_loader(cfg, ImageMapper(cfg, True)), 8) for one in b]
    assert {one["image"].shape[-1] for one in images} == {100, 200}


def test_a_damaged_file_is_named(loaded, monkeypatch):
    monkeypatch.setattr(utils, "read_image", lambda *args, **kwargs: np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(BrokenImageError, match=r"a.png': can no longer be read \(SizeMismatchError"):
        next(iter(build_train_loader(loaded())))


# --- trained on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["FocalRetinaNet", "RetinaNet"])
def test_a_part_is_neither_object_nor_background(tiny_cfg, batch_of, architecture):
    no_band = ("MODEL.RETINANET.IOU_THRESHOLDS", "[0.5, 0.5]")  # whose anchors are ignored anyway
    words = ("MODEL.META_ARCHITECTURE", architecture, *no_band)
    if architecture == "RetinaNet":
        words += ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    model, (image,) = build_model(tiny_cfg(*words)), batch_of((1,))
    losses = []
    for label in (1, IGNORED, None):
        image["instances"].gt_boxes.tensor[:] = torch.tensor([40.0, 30.0, 80.0, 70.0])
        image["instances"].gt_classes[:] = 0 if label is None else label
        batch = [{**image, "instances": image["instances"][:0] if label is None else image["instances"]}]
        with EventStorage():
            losses.append({name: loss.item() for name, loss in model(batch).items()})
    as_object, ignored, nothing = losses
    assert as_object["loss_box_reg"] > 0
    assert ignored["loss_box_reg"] == nothing["loss_box_reg"] == 0
    assert 0 < ignored["loss_cls"] < nothing["loss_cls"]  # by the anchors that are like it


def test_classes_below_the_ignored_one_are_refused(tiny_cfg, batch_of):
    model, batch = build_model(tiny_cfg()), batch_of((2,))
    batch[0]["instances"].gt_classes[0] = IGNORED - 1
    with pytest.raises(ValueError, match="gt_classes go from -2 to"):
        model(batch)


def test_the_validation_loss_is_of_the_tiles_of_the_training(loaded):
    cfg = loaded("INPUT.MIN_SIZE_TEST", "90", "INPUT.RANDOM_FLIP", "none")
    cfg.DATASETS.TEST = ("four",)
    hook, model = ValidationLoss(cfg, 0), build_model(cfg)
    found = hook.measure(model)
    assert [one.get("tile", [None])[0] for one in hook._records] == [None, 0, 80, 100] * 4
    batch = [training_mapper(cfg)(one) for one in cut_records(DatasetCatalog.get("four"), Tiles(100, 0.2))]
    sums, assigned = 0.0, 0
    for image in batch:  # resized for testing as for training, and not flipped
        losses = model([image])
        number = int(model.criterion.num_assigned)
        sums, assigned = sums + losses["loss_cls"].item() * max(1, number), assigned + number
    assert found["val/loss_cls"] == pytest.approx(sums / assigned, rel=1e-4)
