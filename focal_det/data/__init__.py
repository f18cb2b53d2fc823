"""Data sets: where they are, statistics, generated shapes, and the training loader."""
