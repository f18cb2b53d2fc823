"""Flags that stand for keys: as KEY VALUE, and refused beside the key itself."""

from argparse import Namespace

import pytest

from focal_det.cli.data_flags import overrides_of
from focal_det.errors import InputError


def arguments(*overrides, **given):
    nothing = {"classes": None, "merge_classes": [], "split_val": None}
    return Namespace(**{**nothing, **given}, overrides=list(overrides))


def test_only_what_was_given_is_set():
    assert overrides_of(arguments()) == []  # of a command without --tile, too
    found = overrides_of(arguments("SEED", "1", classes=["a", "b"], merge_classes=["c=d"], tile=0, overlap=None))
    expected = [
        "DATASETS.CLASSES",
        "['a', 'b']",
        "DATASETS.MERGE_CLASSES",
        "['c=d']",
        "MODEL.FOCAL_DET.TILES.SIZE",
        "0",
    ]
    assert found == expected


def test_a_flag_beside_its_key_is_refused():
    given = arguments("DATASETS.SPLIT_VAL", "[0.1, 1]", "MODEL.FOCAL_DET.TILES.SIZE", "64", split_val=[0.2, 0], tile=32)
    with pytest.raises(InputError) as error:
        overrides_of(given)
    assert error.value.problems == [
        "--split-val [0.2, 0] and DATASETS.SPLIT_VAL [0.1, 1] both set DATASETS.SPLIT_VAL; leave one of them out",
        "--tile 32 and MODEL.FOCAL_DET.TILES.SIZE 64 both set MODEL.FOCAL_DET.TILES.SIZE; leave one of them out",
    ]
