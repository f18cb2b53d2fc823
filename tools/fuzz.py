"""Fuzz one reader with atheris, which looks for inputs that reach new lines of it: pip install atheris.

    python tools/fuzz.py pickle -max_total_time=60 [-seed=1] [folder of inputs]

An input that ends in an exception that is not the reader's own, in a crash, or in more than 2 GB is written beside.
"""

from __future__ import annotations

import io
import pickle
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["focal_det", "yaml", "json"]):
    import yaml

    from focal_det.checkpoint.restricted_pickle import load_arrays
    from focal_det.errors import InputError
    from focal_det.formats.coco import check_coco
    from focal_det.formats.voc import read_voc
    from focal_det.plain_data import parse_json, parse_yaml


def read_pickle(data: bytes) -> None:
    """Weights; what pickle raises on damage is any of these."""
    with suppress(pickle.UnpicklingError, AttributeError, EOFError, LookupError, OverflowError, TypeError, ValueError):
        load_arrays(io.BytesIO(data))


def read_yaml(data: bytes) -> None:
    """A configuration."""
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        repr(parse_yaml(data.decode("utf-8", "replace")))


def read_coco(data: bytes) -> None:
    """Annotations, without their images."""
    with suppress(InputError, ValueError):
        check_coco(parse_json(data), Path("a.json"), ".", images=False)


def read_annotation(data: bytes) -> None:
    """One of Pascal VOC's."""
    (FOLDER / "a.xml").write_bytes(data)
    with suppress(InputError):
        read_voc(FOLDER, None)


FOLDER = Path(tempfile.mkdtemp())
TARGETS: dict[str, Callable[[bytes], None]] = {
    "pickle": read_pickle,
    "yaml": read_yaml,
    "coco": read_coco,
    "voc": read_annotation,
}

if __name__ == "__main__":
    (FOLDER / "a.jpg").touch()
    atheris.Setup([sys.argv[0], "-rss_limit_mb=2048", *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
