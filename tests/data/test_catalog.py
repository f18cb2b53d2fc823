"""Generated shapes in Detectron2's catalogue."""

import pytest
from detectron2.data import DatasetCatalog

from focal_det.data.catalog import class_names, dataset_problems, prepare_shapes
from focal_det.errors import InputError

pytestmark = pytest.mark.detectron2


def test_shapes_are_registered_with_their_classes(val_shapes):
    assert dataset_problems([val_shapes]) == []
    assert class_names(val_shapes) == ["disk", "box", "triangle"]
    assert len(DatasetCatalog.get(val_shapes)) == 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set DETECTRON2_DATASETS to a folder that can"):
        prepare_shapes(["shapes_val_1_32px"])
