"""Whether two annotation files are the same data set, wherever they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(coco: Mapping[str, Any]) -> str:
    """SHA-256 of what a training reads of a COCO detection file that is sound, in the order in which it reads it.

    That is names and sizes of the pictures, and of each one's objects box, class and whether it is a crowd; not the
    pixels, nor names of classes, nor where the files stand. Two seconds for COCO's 860,000 objects.
    """
    pictures = sorted(coco["images"], key=lambda image: image["id"])  # as Detectron2 reads them
    place = {image["id"]: number for number, image in enumerate(pictures)}
    labels = {id_: label for label, id_ in enumerate(sorted(c["id"] for c in coco["categories"]))}
    annotations = coco["annotations"]
    of_objects = np.array(
        [(place[a["image_id"]], labels[a["category_id"]], bool(a.get("iscrowd"))) for a in annotations], "<i8"
    ).reshape(-1, 3)
    boxes = np.array([a["bbox"] for a in annotations], "<f8").reshape(-1, 4)
    order = np.argsort(of_objects[:, 0], kind="stable")
    digest = hashlib.sha256()
    for image in pictures:
        digest.update(f"{image['file_name']}\n{image['width']} {image['height']}\n".encode(errors="surrogatepass"))
    digest.update(of_objects[order].tobytes())
    digest.update(boxes[order].tobytes())
    return digest.hexdigest()
