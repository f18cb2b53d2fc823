#!/usr/bin/env python
"""Train, evaluate or resume FocalRetinaNet; `python train_net.py --help` says how."""

import sys

from focal_det.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
