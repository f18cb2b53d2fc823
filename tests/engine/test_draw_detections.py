"""Ground truth beside detections: which images and detections are drawn, how, and when."""

from types import SimpleNamespace

import cv2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import nn

from focal_det.data.catalog import prepare_shapes, register_datasets
from focal_det.engine.draw_detections import DrawDetections, draw_detections

pytestmark = pytest.mark.detectron2


class Scores(nn.Module):
    """Find one box of score .3 and one of score .8 in every image, or of what `scores` has."""

    scores = (0.3, 0.8)

    def forward(self, batch):
        found, num = Instances((64, 64)), len(self.scores)
        found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 20, 20], [30, 30, 60, 60]])[:num])
        found.scores = torch.tensor(self.scores)
        found.pred_classes = torch.tensor([0, 1])[:num]
        return [{"instances": found} for _ in batch]


def drawn(tiny_cfg, val_shapes, folder, count, threshold):
    cfg = tiny_cfg("MODEL.FOCAL_DET.DRAW_IMAGES", str(count))
    cfg.MODEL.FOCAL_DET.DRAW_SCORE_THRESH = threshold
    cfg.DATASETS.TEST = (val_shapes,)
    cfg.OUTPUT_DIR = str(folder)
    model = Scores().train()
    sheet = draw_detections(cfg, model)
    assert model.training  # left in its mode
    return sheet, sorted(path.name for path in (folder / "detections").glob("*.png"))


def test_draw_images_says_how_many_and_stale_ones_go(tiny_cfg, val_shapes, tmp_path):
    _, names = drawn(tiny_cfg, val_shapes, tmp_path, 3, 0.5)
    assert names == ["00_000000.png", "01_000001.png", "02_000003.png"]  # evenly spread over five
    sheet, names = drawn(tiny_cfg, val_shapes, tmp_path, 2, 0.5)
    assert len(names) == 2
    assert cv2.imread(str(sheet)) is not None
    assert len(drawn(tiny_cfg, val_shapes, tmp_path, 99, 0.5)[1]) == 5
    assert drawn(tiny_cfg, val_shapes, tmp_path / "none", 0, 0.5)[0] is None


@pytest.mark.parametrize(
    ("threshold", "scores", "said"),
    [
        (0.7, [0.3, 0.7], ""),  # which is below .7 in float32
        (
            0.4,
            [0.3, 0.399],
            "; no detection in these images reaches MODEL.FOCAL_DET.DRAW_SCORE_THRESH, 0.4: the highest is 0.3990",
        ),
        (0.4, [], "; no detection in these images reaches MODEL.FOCAL_DET.DRAW_SCORE_THRESH, 0.4: nothing was found"),
    ],
)
def test_why_no_detection_is_drawn(tiny_cfg, val_shapes, tmp_path, monkeypatch, caplog, threshold, scores, said):
    monkeypatch.setattr(Scores, "scores", scores)
    with caplog.at_level("INFO", logger="focal_det"):
        sheet, _ = drawn(tiny_cfg, val_shapes, tmp_path, 2, threshold)
    assert caplog.messages[-1] == f"Ground truth beside detections: {sheet}{said}"


def test_the_sheet_of_large_images_fits_a_screen(tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name = "shapes_val_3_1200px"
    prepare_shapes([name])
    register_datasets([name], [])
    sheet, names = drawn(tiny_cfg, name, tmp_path, 3, 0.5)
    image = cv2.imread(str(sheet))
    height, width, _ = image.shape
    assert (image[22, :390] == 255).all()  # the titles are not reduced, nor are the labels
    assert 1500 < width <= 1600  # two pairs of two, 390 pixels each
    assert 800 < height < 900  # two rows of 390 and a title
    assert cv2.imread(str(tmp_path / "detections" / names[0])).shape[1] > 2400  # the pair itself stays whole
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_draw_score_thresh_says_which_are_drawn(tiny_cfg, val_shapes, tmp_path):
    images = []
    for threshold in (0.2, 0.5, 0.9):
        sheet, _ = drawn(tiny_cfg, val_shapes, tmp_path / str(threshold), 1, threshold)
        images.append(cv2.imread(str(sheet)))
    width = images[0].shape[1]
    truth = [image[:, : width // 2] for image in images]
    found = [image[:, width // 2 :] for image in images]
    corner = (slice(24 + 5, 24 + 105), slice(5, 105))  # around the box of score .3, enlarged five times
    assert (truth[0] == truth[2]).all()
    assert (found[0][corner] != found[1][corner]).any()
    assert (found[1][corner] == found[2][corner]).all()
    assert (found[1] != found[2]).any()


def trainer_at(iteration, max_iter=100):
    return SimpleNamespace(iter=iteration, max_iter=max_iter)


@pytest.mark.parametrize(("period", "times"), [(0, [9]), (4, [3, 7, 9]), (5, [4, 9])])
def test_drawing_every_period_and_once_at_the_end(period, times):
    drawn_at = []
    hook = DrawDetections(period)
    for iteration in range(10):
        hook.trainer = trainer_at(iteration, max_iter=10)
        hook.trainer.cfg = hook.trainer.model = None
        hook.trainer.draw = lambda cfg, model: drawn_at.append(hook.trainer.iter)
        hook.after_step()
    hook.after_train()
    assert drawn_at == times
