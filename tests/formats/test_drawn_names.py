"""Names of classes in letters that the drawings' font lacks are drawn as numbers, each another, and said once."""

import logging
import warnings

import numpy as np
import pytest

from focal_det.data.inspection import inspection_figure
from focal_det.formats.drawn_names import _say_numbered, drawable
from focal_det.inference.drawing import draw_boxes

CAT, DOG = "\u732b", "\u72d7"  # in Chinese


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("cat 87%", "cat 87%"),
        (f"{CAT}{DOG} 87%", "#3 87%"),
        (f"a {CAT} b {DOG}", "a #3 b #3"),
        ("\u0645\u06cc\u200c\u0634\u0648\u062f", "\u0645\u06cc\u200c\u0634\u0648\u062f"),
        ("e\u0301t\u00e9\u00a0\u043a\u043e\u0442", "e\u0301t\u00e9\u00a0\u043a\u043e\u0442"),
        ("", ""),
    ],
)
def test_parts_without_letters_become_the_label(text, drawn):
    assert drawable(text, 3) == drawn


def test_it_is_said_once(caplog):
    _say_numbered.cache_clear()
    with caplog.at_level(logging.WARNING):
        drawable(CAT, 0), drawable(DOG, 1)
    assert [r.getMessage() for r in caplog.records] == [
        "names of classes in letters that DejaVuSans lacks are drawn as #LABEL"
    ]


def test_drawings_of_such_classes_differ_and_matplotlib_does_not_warn(tmp_path):
    image, box = np.zeros((48, 64, 3), np.uint8), np.array([[5, 5, 40, 40]])
    one, other = (draw_boxes(image, box, [0], [name], num_classes=2) for name in (CAT, "#0"))
    assert (one == other).all()
    categories = [{"id": 1, "name": CAT}, {"id": 2, "name": DOG}]
    coco = {"images": [{"id": 1, "width": 64, "height": 48}], "annotations": [], "categories": categories}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inspection_figure({"set": coco}, {}).savefig(tmp_path / "a.png")
