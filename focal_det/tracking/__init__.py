"""Where a training's metrics go: the log line, metrics.json, TensorBoard, and the trackers that a key names."""
