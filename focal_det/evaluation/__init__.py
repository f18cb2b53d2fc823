"""COCO's scores, and the errors behind them, from annotations and detections alone: no Detectron2."""
