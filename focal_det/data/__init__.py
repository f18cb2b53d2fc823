"""Data sets: COCO annotation files, generated shapes, and the checks before training."""
