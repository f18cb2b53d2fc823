"""What a data set holds, counted by hand."""

import json

import numpy as np

from focal_det.data.inspection import describe, describe_balance, inspect_set, inspection_figure
from focal_det.data.statistics import AnchorFit, statistics

COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": 80} for i, w in ((1, 100), (2, 100), (3, 200))],
    "annotations": [
        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 40, 10], "area": 400, "iscrowd": 0},
        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 32, 32], "area": 1024, "iscrowd": 0},
        {"image_id": 2, "category_id": 4, "bbox": [0, 0, 96, 96], "area": 9216, "iscrowd": 0},
        {"image_id": 3, "category_id": 4, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": r"a $\dog$"}, {"id": 5, "name": "none"}],
}
EMPTY = {**COCO, "annotations": []}


def test_counts_labels_and_sizes():
    found = inspect_set(COCO)
    assert (found["images"], found["without_objects"], found["boxes"], found["ignored"]) == (3, 1, 3, 1)
    # labels follow the ids, not the order in the file
    assert [(c["label"], c["id"], c["name"], c["boxes"], c["images"]) for c in found["classes"]] == [
        (0, 4, r"a $\dog$", 1, 1),
        (1, 5, "none", 0, 0),
        (2, 9, "cat", 2, 1),
    ]
    assert found["sizes"] == {"small": 1, "medium": 1, "large": 1}  # 400, 1024 = 32^2, 9216 = 96^2
    assert found["image_sizes"][0] == {"width": 100, "height": 80, "images": 2}


def test_quantiles():
    objects = statistics(COCO).objects
    assert objects.sides.tolist() == [20, 32, 7680**0.5]  # sqrt(40 * 10), ...; of 96 x 96, 80 are in the image
    assert objects.aspect_ratios.tolist() == [4, 1, 1.2]
    found = inspect_set(COCO)
    assert (found["side"]["min"], found["side"]["median"], found["side"]["max"]) == (20, 32, 87.636)
    assert (found["boxes_per_image"]["min"], found["boxes_per_image"]["median"]) == (0, 1)


def test_a_set_without_objects_has_no_quantiles_and_is_valid_json():
    found = inspect_set(EMPTY)
    assert set(found["side"].values()) == {None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "0 boxes\n" in describe(found, is_trained_on=True)


def test_the_text_says_what_is_not_trained_on():
    text = describe(inspect_set(COCO), is_trained_on=True)
    assert "3 images, 1 of them without objects, which are not trained on while" in text
    assert "1 of them without objects\n" in describe(inspect_set(COCO), is_trained_on=False)
    assert "3 boxes, and 1 that are ignored" in text
    assert "1 small (33%), 1 medium (33%), 1 large (33%)" in text


def test_the_balance_names_the_rarest_and_what_is_not_everywhere():
    dogs = {**COCO, "annotations": [{**row, "category_id": 4} for row in COCO["annotations"][:2]]}
    assert describe_balance({"train": inspect_set(COCO), "val": inspect_set(dogs)}) == [
        "no object of class none in any set: it can be neither learnt nor tested",
        "in train alone: class cat",
        r"train: the rarest class is a $\dog$, 1 of 3 boxes (33.3%); cat has 2 times as many",
    ]
    assert describe_balance({"val": inspect_set(EMPTY)}) == [
        r"no object of class a $\dog$, none, cat in any set: it can be neither learnt nor tested"
    ]


def test_the_figure_has_a_row_for_each_set_and_survives_formulas_and_no_objects(tmp_path):
    fit = AnchorFit(np.array([8.0, 16.0, 90.0]), np.array([0.3, 0.4, 0.5]), (0.4, 0.5), "240 px")
    figure = inspection_figure({r"train $\x$": COCO, "val": EMPTY}, {r"train $\x$": fit})
    assert len(figure.axes) == 8
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars == [2, 1, 0]  # the most frequent first
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 3
    # a third each: below .4, from .4 on, from .5 on
    texts = [text.get_text() for text in figure.axes[3].get_legend().get_texts()]
    assert texts == ["< .4 (33.3%)", ".4 to .5 (33.3%)", ">= .5 (33.3%)"]
    assert figure.axes[3].get_title() == "images of 240 px"
    figure.savefig(tmp_path / "x.png")


def test_bars_of_sizes_that_are_all_alike_are_wide_enough_to_see():
    alike = {**COCO, "annotations": [{**row, "bbox": [0, 0, 30, 30], "area": 900} for row in COCO["annotations"]]}
    axes = inspection_figure({"train": alike}, {}).axes[1]
    (bar,) = (bar for bar in axes.patches if bar.get_height())
    assert bar.get_width() > 30 * 0.02
