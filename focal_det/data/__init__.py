"""Data sets: COCO and Pascal VOC files read and checked, generated shapes, statistics, and the training loader."""
