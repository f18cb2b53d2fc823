"""Write what a trained detector's head gives for large images, for timing the post-processing.

    python benchmarks/trained_outputs.py --run output/quickstart --out FILE [--images 2] [--size 800 1216]

Random logits would mislead: how many pass the threshold decides the time. The detector of `make demo` sees the
images of its validation split laid side by side until they fill the size. Its three classes become the first of
`--classes`; the others get logits that it gave to background, in another order for each class.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor

from focal_det.config.load import load_config
from focal_det.data.catalog import prepare_shapes, register_datasets


def mosaic(paths: list[str], size: tuple[int, int]) -> Tensor:
    """Return (3, H, W) uint8 of images laid side by side."""
    tiles = [cv2.imread(path) for path in paths]
    side = tiles[0].shape[0]
    columns, rows = -(-size[1] // side), -(-size[0] // side)
    lines = [cv2.hconcat([tiles[(r * columns + c) % len(tiles)] for c in range(columns)]) for r in range(rows)]
    return torch.from_numpy(cv2.vconcat(lines)[: size[0], : size[1]].copy()).permute(2, 0, 1)


def more_classes(level: Tensor, trained: int, wanted: int) -> Tensor:
    """Widen (N, A*trained, H, W) to (N, A*wanted, H, W); the classes beyond the trained are background."""
    anchors = level.unflatten(1, (-1, trained))  # (N, A, K, H, W)
    background = anchors.flatten()[anchors.flatten() < -2.944]
    more = background[torch.randint(len(background), (*anchors.shape[:2], wanted - trained, *anchors.shape[3:]))]
    return torch.cat([anchors, more], dim=2).flatten(1, 2)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1216])
    parser.add_argument("--classes", type=int, default=80)
    args = parser.parse_args()
    checkpoint = args.run / "model_final.pth"
    if not checkpoint.is_file():
        raise SystemExit(f"{checkpoint}: no such file; `make demo` trains it")

    torch.manual_seed(0)
    cfg = load_config(args.run / "config.yaml", ["MODEL.DEVICE", "cpu"])
    prepare_shapes(cfg.DATASETS.TEST)
    register_datasets(cfg.DATASETS.TEST, ())
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(checkpoint))
    paths = [x["file_name"] for x in DatasetCatalog.get(cfg.DATASETS.TEST[0])]
    tiles = len(paths) // args.images
    size = tuple(args.size)
    batch = [{"image": mosaic(paths[i * tiles : (i + 1) * tiles], size)} for i in range(args.images)]
    logits, deltas = model.network(model._preprocess(batch).tensor)
    trained = cfg.MODEL.RETINANET.NUM_CLASSES
    logits = [more_classes(level.contiguous(), trained, max(trained, args.classes)) for level in logits]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"logits": logits, "deltas": [level.contiguous() for level in deltas]}, args.out)


if __name__ == "__main__":
    main()
