"""Configurations that come with the package are found by name."""

from pathlib import Path

import pytest

from focal_det.config import packaged
from focal_det.errors import InputError

ROOT = Path(__file__).parents[2]


def test_a_checkouts_are_found_by_name():
    assert packaged.config_path("focal_det://bccd.yaml") == ROOT / "configs" / "bccd.yaml"
    assert packaged.config_path("focal_det://paper/table1b.yaml").is_file()
    assert packaged.config_path("configs/bccd.yaml") == Path("configs/bccd.yaml")


def test_an_installed_packages_are_its_own(monkeypatch, tmp_path):
    (tmp_path / "focal_det" / "configs").mkdir(parents=True)
    (tmp_path / "focal_det" / "configs" / "one.yaml").touch()
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(packaged, "_PACKAGE", tmp_path / "focal_det")
    assert packaged.config_path("focal_det://one.yaml") == tmp_path / "focal_det" / "configs" / "one.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bcd.yaml", "did you mean focal_det://bccd.yaml?"),
        ("bccd", "did you mean focal_det://bccd.yaml?"),
        ("table1b.yaml", "did you mean focal_det://paper/table1b.yaml?"),
        ("../setup.py", "there are Base-R18-scratch.yaml, "),
        ("", "there are Base-R18-scratch.yaml, "),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_a_close_one_or_all(name, hint):
    with pytest.raises(InputError) as caught:
        packaged.config_path(f"focal_det://{name}")
    assert str(caught.value).startswith(f"config file focal_det://{name}: no configuration of that name comes with")
    assert hint in str(caught.value)


def test_the_name_is_known_for_a_path_as_in_a_checkout():
    assert packaged.packaged_name(Path("configs/paper/table3.yaml")) == "focal_det://paper/table3.yaml"
    assert packaged.packaged_name(Path("configs/mine.yaml")) is None
    assert packaged.packaged_name(Path("bccd.yaml")) is None
