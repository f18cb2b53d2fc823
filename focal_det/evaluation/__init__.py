"""COCO's scores and what is behind them, from annotations and detections alone: no Detectron2."""
