"""The detector: its mathematics on tensors, and the thin classes that Detectron2 builds."""
