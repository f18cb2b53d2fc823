"""The sampler's keys name sets as the user wrote them, and an epoch has the images that are drawn."""

import pytest

from focal_det.config.sampling import check_subset, fit_repeat_factors, images_of_epoch

pytestmark = pytest.mark.detectron2

WEIGHTED = ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler", "DATASETS.TRAIN_REPEAT_FACTOR")
WRITTEN, NAMES = ("coco:a.json:a", "mine"), ("train_json", "mine")


@pytest.mark.parametrize("name", ["coco:a.json:a", "train_json"])
def test_sets_are_named_as_they_were_written_or_as_the_run_calls_them(tiny_cfg, name):
    cfg = tiny_cfg(*WEIGHTED, f"[({name!r}, 3), ['mine', 0.5]]")
    factors, found = fit_repeat_factors(cfg, WRITTEN, NAMES)
    assert factors == [["train_json", 3.0], ["mine", 0.5]]
    assert found.errors == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[('yours', 2.0)]", "names 'yours', but the sets to train on are train_json, mine, coco:a.json:a"),
        ("[('mine', 2.0), ('mine', 3.0)]", "names 'mine' twice; leave one out"),
        ("[('mine', 0.0)]", "has the factor 0.0 for 'mine'; it must be pairs of a set and a factor in [0.001, 1000]"),
        # with which Detectron2's sampler would draw empty epochs for good
        ("[('mine', 1e-300)]", "has the factor 1e-300 for 'mine'; it must be pairs of a set and a factor in [0.001"),
        (f"[('mine', {10**400})]", "for 'mine'; it must be pairs of a set and a factor in [0.001, 1000]"),
        ("[('mine', 'x')]", "has the factor 'x' for 'mine'; it must be pairs"),
        (
            "['mine', 2.0]",
            "has 'mine'; it must be pairs of a set and a factor in [0.001, 1000], such as [['coco:a.json:a'",
        ),
    ],
)
def test_what_is_no_factor_of_a_set_is_named(tiny_cfg, value, message):
    _, found = fit_repeat_factors(tiny_cfg(*WEIGHTED, value), WRITTEN, NAMES)
    assert found.errors[0].startswith("DATASETS.TRAIN_REPEAT_FACTOR ")
    assert message in found.errors[0]


def test_a_subset_is_an_epoch_of_fewer_images(tiny_cfg):
    cfg = tiny_cfg("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.RANDOM_SUBSET_RATIO", "0.3")
    assert images_of_epoch(cfg, 8) == 2
    assert check_subset(cfg, 8).errors == check_subset(cfg, None).errors == []
    assert check_subset(cfg, 3).errors == [
        "DATALOADER.RANDOM_SUBSET_RATIO is 0.3: no image is left of 3; it must be at least 0.33"
    ]
    assert images_of_epoch(tiny_cfg(), 8) == 8
