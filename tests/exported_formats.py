"""One small data set, written as the tools write it: `WRITERS` by the name of the export.

Each takes a folder and returns what --train names there. The classes are numbered cat, dog.
"""

import json

import numpy as np
from PIL import Image

SIZE = WIDTH, HEIGHT = 64, 48
# By image, objects: class, x, y, width, height.
OBJECTS = {
    "a": [("cat", 4, 6, 20, 12), ("dog", 30, 10, 24, 30)],
    "b": [("dog", 0, 0, 64, 48)],
    "c": [],
    "d": [("cat", 50.5, 40.25, 10, 6.5)],
}
CLASSES = ["cat", "dog"]


def write_images(folder, names=tuple(OBJECTS), ending=".png"):
    """Write images of noise, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        pixels = np.random.default_rng([ord(c) for c in name]).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{ending}")


def yolo_lines(objects):
    rows = [
        (CLASSES.index(n), (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        for n, x, y, w, h in objects
    ]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def write_labels(folder, objects=OBJECTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, things in objects.items():
        (folder / f"{name}.txt").write_text(yolo_lines(things))


def ultralytics(folder, objects=OBJECTS):
    write_images(folder / "images" / "train", objects)
    write_labels(folder / "labels" / "train", objects)
    (folder / "data.yaml").write_text("path: datasets/mine\ntrain: images/train\ntest:\nnames:\n  0: cat\n  1: dog\n")
    return folder


def roboflow_yolo(folder, objects=OBJECTS):
    write_images(folder / "train" / "images", objects)
    write_labels(folder / "train" / "labels", objects)
    (folder / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cat', 'dog']\n")
    return folder


def label_studio_yolo(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    write_labels(folder / "labels", objects)
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "notes.json").write_text('{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}')
    return folder


def cvat_yolo(folder, objects=OBJECTS):
    write_images(folder / "obj_train_data", objects)
    write_labels(folder / "obj_train_data", objects)
    (folder / "obj.names").write_text("cat\ndog\n")
    (folder / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    (folder / "train.txt").write_text("".join(f"data/obj_train_data/{name}.png\n" for name in objects))
    return folder


def coco(objects=OBJECTS, prefix=""):
    images = [
        {"id": i, "license": 1, "file_name": f"{prefix}{name}.png", "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate(objects)
    ]
    boxes = [(i, *thing) for i, things in enumerate(objects.values()) for thing in things]
    annotations = [
        {"id": n, "image_id": i, "category_id": CLASSES.index(name) + 1, "bbox": box, "segmentation": [], "iscrowd": 0}
        for n, (i, name, *box) in enumerate(boxes, start=1)
    ]
    categories = [{"id": i + 1, "name": name, "supercategory": "none"} for i, name in enumerate(CLASSES)]
    return json.dumps(
        {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}
    )


def roboflow_coco(folder, objects=OBJECTS):
    write_images(folder / "train", objects)
    (folder / "train" / "_annotations.coco.json").write_text(coco(objects))
    (folder / "README.roboflow.txt").write_text("Provided by a Roboflow user\n")
    return folder


def coco_release(folder, objects=OBJECTS):
    write_images(folder / "train2017", objects)
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_train2017.json").write_text(coco(objects))
    (folder / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return folder


def cvat_coco(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / "instances_default.json").write_text(coco(objects))
    return folder


def pascal_voc(folder, objects=OBJECTS):
    write_images(folder / "JPEGImages", objects)
    (folder / "Annotations").mkdir(parents=True)
    for name, things in objects.items():
        body = "".join(
            f"<object><name>{n}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>"
            for n, x, y, w, h in things
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{body}</annotation>")
    return folder


def labelme(folder, objects=OBJECTS):
    write_images(folder, objects)
    for name, things in objects.items():
        shapes = [
            {"label": n, "points": [[x, y], [x + w, y + h]], "group_id": None, "shape_type": "rectangle", "flags": {}}
            for n, x, y, w, h in things
        ]
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{name}.png",
            "imageData": "aGVsbG8=",
        }
        (folder / f"{name}.json").write_text(json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH}))
    return folder


def open_images(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
    for name, things in objects.items():
        for n, x, y, w, h in things:
            sides = (x / WIDTH, (x + w) / WIDTH, y / HEIGHT, (y + h) / HEIGHT)
            rows.append(f"{name},xclick,/m/{n},1,{','.join(map(repr, sides))},0,0,0")
        rows += [] if things else [f"{name},,,,,,,,,,"]
    (folder / "train-annotations-bbox.csv").write_text("\n".join(rows) + "\n")
    (folder / "class-descriptions-boxable.csv").write_text("/m/cat,cat\n/m/dog,dog\n")
    return folder


def plain_csv(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    rows = [(name, x, y, x + w, y + h, n) for name, things in objects.items() for n, x, y, w, h in things]
    rows += [(name, "", "", "", "", "") for name, things in objects.items() if not things]
    (folder / "boxes.csv").write_text("".join(f"images/{row[0]}.png,{','.join(map(str, row[1:]))}\n" for row in rows))
    return folder


def roboflow_csv(folder, objects=OBJECTS):
    write_images(folder / "train", objects)
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name, things in objects.items():
        rows += [f"{name}.png,{WIDTH},{HEIGHT},{n},{x},{y},{x + w},{y + h}" for n, x, y, w, h in things]
        rows += [] if things else [f"{name}.png,,,,,,,"]
    (folder / "train" / "_annotations.csv").write_text("\n".join(rows))
    return folder


def cvat_images(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    labels = "".join(f"<label><name>{name}</name><type>any</type></label>" for name in CLASSES)
    images = ""
    for number, (name, things) in enumerate(objects.items()):
        boxes = "".join(
            f'<box label="{n}" occluded="0" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" z_order="0"></box>'
            for n, x, y, w, h in things
        )
        images += f'<image id="{number}" name="{name}.png" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>'
    meta = f"<meta><task><id>1</id><labels>{labels}</labels></task></meta>"
    (folder / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{images}</annotations>'
    )
    return folder


def region(name, x, y, w, h):
    value = {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 100 * w / WIDTH, "height": 100 * h / HEIGHT}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    names = {"id": "Dx_aB", "from_name": "label", "to_name": "image", "type": "rectanglelabels"}
    return {**names, **size, "value": {**value, "rotation": 0, "rectanglelabels": [name]}}


def label_studio(folder, objects=OBJECTS):
    write_images(folder, objects)
    tasks = [
        {
            "id": number,
            "annotations": [{"id": 9, "was_cancelled": False, "result": [region(*thing) for thing in things]}],
            "data": {"image": f"/data/upload/3/1a2b3c4d-{name}.png"},
            "predictions": [],
        }
        for number, (name, things) in enumerate(objects.items())
    ]
    (folder / "project-3-at-2024-05-01.json").write_text(json.dumps(tasks))
    return folder


def label_studio_min(folder, objects=OBJECTS):
    write_images(folder / "images", objects)
    tasks = []
    for number, (name, things) in enumerate(objects.items()):
        regions = [region(*thing) for thing in things]
        flat = [{**r["value"], "original_width": WIDTH, "original_height": HEIGHT} for r in regions]
        fields = {"label": flat} if flat else {}
        tasks.append({"image": f"/data/local-files/?d=images/{name}.png", "id": number, **fields, "annotator": 1})
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder


WRITERS = {
    function.__name__: function
    for function in (
        *(ultralytics, roboflow_yolo, label_studio_yolo, cvat_yolo),
        *(roboflow_coco, coco_release, cvat_coco, pascal_voc),
        *(labelme, open_images, plain_csv, roboflow_csv),
        *(cvat_images, label_studio, label_studio_min),
    )
}
