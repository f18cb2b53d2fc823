"""A picture that breaks while a run reads it is named, also from a loader's worker."""

import pickle

import pytest
import torch

from focal_det.data.named_faults import BrokenPictureError, named_faults


def read(record):
    if record["file_name"] == "b.jpg":
        raise OSError("broken data stream\nmore")
    return record["file_name"]


class Pictures(torch.utils.data.Dataset):
    def __init__(self, mapper):
        self.mapper = mapper

    def __len__(self):
        return 2

    def __getitem__(self, place):
        return self.mapper({"file_name": "ab"[place] + ".jpg"})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_names_the_picture_and_nothing_else_changes(workers):
    loader = iter(torch.utils.data.DataLoader(Pictures(named_faults(read)), num_workers=workers))
    assert next(loader) == ["a.jpg"]
    with pytest.raises(BrokenPictureError) as caught:
        next(loader)
    assert str(caught.value).startswith("'b.jpg': cannot be read any more (OSError: broken data stream); replace the")
    assert "\n" not in str(caught.value)


def test_it_goes_to_workers_that_are_started_anew():
    assert pickle.loads(pickle.dumps(named_faults(read)))({"file_name": "a.jpg"}) == "a.jpg"
