"""Data sets of noise for the tests of preflight, and the lines that a start prints."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from focal_det.cli.train import parse_arguments
from focal_det.errors import InputError
from focal_det.preflight.plan import check

ROOT = Path(__file__).parents[1]
QUICK = ["--config-file", str(ROOT / "configs/quickstart.yaml"), "DATALOADER.NUM_WORKERS", "0"]
OF_THE_MACHINE = ("NO GPU HERE", "no bfloat16 instructions")  # warnings that are no matter of the data


def random_coco(folder, *, images=30, seed=0, classes=("cell", "plate")):
    """A clean set of noise, with boxes of all places and shapes inside their images."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3 * i + 1, "name": n} for i, n in enumerate(classes)],
    }
    for index in range(images):
        width, height = (int(side) for side in rng.integers(60, 120, 2))
        name = f"{index}.{('png', 'jpg')[index % 2]}"
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        coco["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        for _ in range(4):
            w, h = (rng.uniform(0.2, 0.5, 2) * (width, height)).round(1).tolist()
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            category = 3 * int(rng.integers(len(classes))) + 1
            annotation = {"image_id": index, "category_id": category, "bbox": [x, y, w, h]}
            coco["annotations"].append({"id": len(coco["annotations"]) + 1, **annotation})
    return coco


def flags_of(train, val):
    words = []
    for split, (coco, folder) in (("train", train), ("val", val)):
        path = folder.parent / f"{split}.json"
        path.write_text(json.dumps(coco))
        words += [f"--{split}-json", str(path), f"--{split}-images", str(folder)]
    return words


@pytest.fixture
def clean(tmp_path):
    """Two clean sets, (contents, folder) each."""
    return [(random_coco(tmp_path / name, seed=seed), tmp_path / name) for seed, name in enumerate(("train", "val"))]


@pytest.fixture
def beside_no_run(monkeypatch, tmp_path):
    """Another folder to start from: the configuration's own OUTPUT_DIR is relative, and a demo may have run there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def checked(*words):
    """The plan of a quickstart with these words added to its command."""
    return check(parse_arguments([*QUICK, *map(str, words)]))


def problems(*words):
    """The errors of a command that is refused."""
    with pytest.raises(InputError) as caught:
        checked(*words)
    return caught.value.problems


def warnings_in(captured):
    return [line for line in captured.err.splitlines() if not any(known in line for known in OF_THE_MACHINE)]


def errors_in(captured):
    """The lines of a refused start, whose warnings come before."""
    lines = captured.err.splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert lines[len(lines) - len(errors) :] == errors
    return errors


def first_of(coco, place, **values):
    coco["annotations"][place].update(values)


def cut_off(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
