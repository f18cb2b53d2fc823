"""Data sets by their names: the paper's parts of COCO, and what is said where files are missing."""

from focal_det.data.dataset_spec import missing_files, registered_sets


def test_the_papers_names_become_registered_sets():
    assert registered_sets(["trainval35k"]) == ("coco_2014_train", "coco_2014_valminusminival")
    assert registered_sets(["minival", "mine", "test-dev"]) == ("coco_2014_minival", "mine", "coco_2017_test-dev")


def test_missing_files_are_named_with_their_source_and_present_ones_are_not(tmp_path):
    there = tmp_path / "train2014"
    there.mkdir()
    paths = [str(there), str(tmp_path / "instances_minival2014.json"), str(tmp_path / "instances_minival2014.json")]
    file, place, other = missing_files(paths)
    source = "https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz"
    assert file == f"{tmp_path}/instances_minival2014.json is missing; it comes from {source}"
    assert "DETECTRON2_DATASETS" in place
    assert "coco_2017_train and coco_2017_val hold the same images" in other
    assert missing_files([str(there)]) == []


def test_the_2017_files_are_not_offered_for_themselves(tmp_path):
    file, place = missing_files([str(tmp_path / "val2017")])
    assert "the same images" not in file + place
