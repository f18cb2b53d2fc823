#!/usr/bin/env python
"""Train, evaluate or resume FocalRetinaNet; `python train_net.py --help` says how."""

import signal
import sys

if __name__ == "__mp_main__":  # a rank that the launcher starts: until it listens, signals wait
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))

from focal_det.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
