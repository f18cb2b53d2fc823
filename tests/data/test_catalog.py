"""Generated shapes in Detectron2's catalogue."""

import pytest
from detectron2.data import DatasetCatalog

from focal_det.data.catalog import (
    category_ids,
    class_names,
    dataset_problems,
    known_classes,
    prepare_shapes,
    register_datasets,
)
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2


def test_shapes_are_registered_with_their_classes(val_shapes):
    assert dataset_problems([val_shapes]) == []
    assert class_names(val_shapes) == ["disk", "box", "triangle"]
    assert len(DatasetCatalog.get(val_shapes)) == 5


def test_shapes_are_those_of_the_folder_that_is_named_now(val_shapes, tmp_path, monkeypatch):
    assert DatasetCatalog.get(val_shapes)[0]["file_name"].startswith(str(tmp_path / "shapes"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    prepare_shapes([val_shapes])
    register_datasets([val_shapes], [])
    assert DatasetCatalog.get(val_shapes)[0]["file_name"].startswith(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("metadata", "ids"),
    [
        ({"thing_classes": ["a", "b"]}, [0, 1]),
        ({"thing_classes": ["a", "b"], "evaluator_type": "lvis"}, [1, 2]),
        ({"thing_classes": ["a", "b"], "thing_dataset_id_to_contiguous_id": {7: 1, 9: 0}}, [9, 7]),
    ],
)
def test_category_ids_are_those_of_the_detections_that_detectron2_writes(metadata, ids):
    assert category_ids(metadata) == ids


def test_shapes_have_the_ids_of_their_files_before_they_are_drawn():
    assert known_classes("shapes_val_5_32px") == (["disk", "box", "triangle"], [1, 2, 3])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set DETECTRON2_DATASETS to a folder that can"):
        prepare_shapes(["shapes_val_1_32px"])
