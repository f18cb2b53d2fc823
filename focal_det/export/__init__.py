"""A trained detector as one file that runs without Detectron2: ONNX, or PyTorch's exported program."""
