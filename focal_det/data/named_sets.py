"""What stands behind the name of a data set: the COCO file of a registered one, or of generated shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from detectron2.data import MetadataCatalog

from ..errors import InputError
from ..plain_data import parse_json
from .catalog import datasets_root
from .coco_json import LARGEST_JSON, CocoFile, check_coco
from .folders import open_regular
from .shapes import parse_name, shapes_files


def read_named_set(
    name: str, use: Literal["train", "val"], *, pictures: bool, allow_outside: bool = False
) -> CocoFile | str:
    """The set's annotations, checked; or, in words, why there are none to look at.

    Detectron2 reads the file itself, so what it needs must be there. What is left out of the returned copy, boxes
    without area, its loader leaves out of training as well, but not its evaluation.

    Args:
        name: of a set without `dataset_problems`.
        use: "val" also for a set that is trained on and evaluated on.
        pictures: also decode its pictures.
        allow_outside: whether names of pictures may lead out of their folder.

    Raises:
        InputError: with every problem found.
    """
    if parse_name(name) is not None:
        annotations, folder = shapes_files(name, datasets_root())
        if not annotations.is_file():
            return "generated shapes, drawn first"
    else:
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file is None or image_root is None:
            return "not a COCO file, so not described"
        annotations, folder = Path(json_file), Path(image_root)
    try:
        with open_regular(annotations, most=LARGEST_JSON) as file:
            raw = parse_json(file.read())
    except (OSError, ValueError, MemoryError) as error:
        raise InputError(f'data set "{name}": {annotations} cannot be read ({error})') from error
    if isinstance(raw, dict) and "annotations" not in raw:
        return f"{len(raw.get('images', []))} pictures without annotations"  # such as COCO's test-dev
    return check_coco(
        raw, annotations, folder, pictures=pictures, decode=pictures, allow_outside=allow_outside, as_is=use
    )
