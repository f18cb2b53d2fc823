"""Fixtures of the engine's tests."""

import pytest


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Register a training set of 8 and a test set of 5 generated images; return their names."""
    from detectron2.data import DatasetCatalog, MetadataCatalog  # tests without Detectron2 load this file, too

    from focal_det.data.catalog import prepare_shapes, register_datasets

    names = ("shapes_train_8_64px", "shapes_val_5_64px")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        prepare_shapes(names)
        register_datasets(names, [])
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
