"""Images that Detectron2 would resize to nothing, or a level to a pixel that nothing normalises, are named before."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from preflight_fixtures import QUICK, problems

from focal_det.cli.train import parse_arguments
from focal_det.preflight.image_shapes import _resized
from focal_det.preflight.plan import check

pytestmark = pytest.mark.detectron2


@pytest.fixture
def flags(tmp_path, monkeypatch):
    """Flags of a set to train and one to test on, each of one image of that width and height."""
    monkeypatch.chdir(tmp_path)

    def write(**sizes):
        given = []
        for seed, (use, (width, height)) in enumerate(sizes.items()):
            pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{use}.png")
            image = {"id": 1, "file_name": f"{use}.png", "width": width, "height": height}
            row = {"image_id": 1, "category_id": 1, "bbox": [0, 0, width, height]}
            coco = {"images": [image], "annotations": [row], "categories": [{"id": 1, "name": "cat"}]}
            (tmp_path / f"{use}.json").write_text(json.dumps(coco))
            given += [f"--{use}-json", f"{tmp_path}/{use}.json", f"--{use}-images", str(tmp_path)]
        return given

    return write


def test_images_of_3000_by_1_are_named_for_both_uses(flags):
    found = problems(*flags(train=(3000, 1), val=(1, 3000)), "INPUT.MAX_SIZE_TEST", 1333)
    assert [line.split(": ")[0] for line in found] == ["train_json", "val_json"]
    assert "1 of 1 images are so thin that they would be resized to 0 pixels ('train.png' 3000x1)" in found[0]
    assert "or raise INPUT.MAX_SIZE_TEST, which is 1333" in found[1]


@pytest.mark.parametrize("size", [(3000, 1), (3000, 2), (2666, 1), (2667, 1), (1, 3000), (64, 48), (500, 333)])
def test_sizes_are_those_of_detectron2(size):
    width, height = size
    expected = ResizeShortestEdge.get_output_shape(height, width, 800, 1333)[::-1]
    assert _resized([{"width": width, "height": height}], 800, 1333).tolist() == [list(expected)]


GN = ["MODEL.RETINANET.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TEST"]


def test_a_level_of_one_pixel_with_one_channel_a_group_is_refused_as_pytorch_would(flags):
    given = flags(train=(64, 48), val=(64, 48))
    (problem,) = problems(*given, *GN, 64)
    assert problem.startswith("val_json: 1 of 1 images have one pixel at stride 128, where MODEL.RETINANET.NORM GN has")
    for more in (["INPUT.MIN_SIZE_TEST", "160"], ["MODEL.FPN.OUT_CHANNELS", "64"], ["MODEL.RETINANET.NORM", ""]):
        check(parse_arguments([*QUICK, *given, *GN, "64", *more]))
    # square tiles are shorter than the image that they are cut from
    wide = flags(train=(64, 48), val=(200, 64))
    check(parse_arguments([*QUICK, *wide, *GN, "64"]))
    (problem,) = problems(*wide, *GN, 64, "--tile", 64)
    assert problem.startswith("val_json: 1 of 1 images have one pixel at stride 128")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        torch.nn.GroupNorm(32, 32).eval()(torch.zeros(1, 32, 1, 1))


def test_a_stream_is_not_cut_into_tiles(flags):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    DatasetCatalog.register("stream", Stream)
    words = [*QUICK, *flags(val=(64, 48)), "DATASETS.TRAIN", "('stream',)"]
    try:
        check(parse_arguments(words))
        (problem,) = problems(*words[len(QUICK) :], "--tile", 64)
    finally:
        DatasetCatalog.remove("stream")
    assert problem.startswith('data set "stream" is a stream, which is not cut into tiles: let its function return')
