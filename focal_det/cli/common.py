"""What the command lines share."""

import warnings

EXIT_DONE, EXIT_FAULT, EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130


def silence_detectron2() -> None:
    """Keep PyTorch's warning of Detectron2's use of torch.jit from the screen."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
