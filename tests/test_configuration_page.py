"""docs/configuration.md is what its generator makes of defaults.py."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "tools" / "configuration_page.py")
configuration_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(configuration_page)


def test_the_page_is_up_to_date():
    made = configuration_page.page(configuration_page.groups_of(configuration_page.SOURCE.read_text()))
    assert (ROOT / "docs" / "configuration.md").read_text() == made, "run python tools/configuration_page.py"


SOURCE = """
def add(cfg):
    # Ours.
    node = cfg.MODEL.OURS = type(cfg)()

    # One
    # key.
    node.ONE = 1

    # A pair.
    node.TWO = (2, 3)
    node.THREE = "x"

    # Fast or not.
    speed = node.SPEED = type(cfg)()

    # On.
    speed.ON = True
"""


def test_comments_and_defaults_are_read_from_the_source():
    ours, speed = configuration_page.groups_of(SOURCE)
    assert ours == ("MODEL.OURS", "Ours.", [
        ("MODEL.OURS.ONE", "1", "One key."),
        ("MODEL.OURS.TWO", "(2, 3)", "A pair."),
        ("MODEL.OURS.THREE", "'x'", "A pair."),
    ])  # fmt: skip
    assert speed == ("MODEL.OURS.SPEED", "Fast or not.", [("MODEL.OURS.SPEED.ON", "True", "On.")])
    text = configuration_page.page([ours, speed])
    assert "**`MODEL.OURS.TWO`** (default `(2, 3)`), **`MODEL.OURS.THREE`** (default `'x'`)  \nA pair.\n" in text


def test_a_key_without_a_comment_is_refused():
    with pytest.raises(ValueError, match=r"line 20: MODEL\.OURS\.SPEED\.OFF has no comment"):
        configuration_page.groups_of(SOURCE + "\n    speed.OFF = False\n")
