"""Training, evaluation and drawing on Detectron2's engine."""
