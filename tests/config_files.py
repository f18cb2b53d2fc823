"""Configuration files for tests, and what is said of them."""

import pytest

from focal_det.config.load import load_config
from focal_det.errors import InputError


def write_layers(folder, **layers):
    """Write one file on top of the other and return the path of the last, which is on top of all."""
    below = ""
    for name, text in layers.items():
        (folder / f"{name}.yaml").write_text(below + text)
        below = f"_BASE_: {name}.yaml\n"
    return folder / f"{name}.yaml"


def problems_of(path, overrides=()):
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return caught.value.problems
