"""The command focal-det, which `python -m focal_det` runs too."""

import signal
import sys

# In a rank that `focal-det train` starts, until it listens, signals wait; train_net.py does the same. multiprocessing
# runs the launcher's main module there under another name, which elsewhere is the main module itself or nothing.
if sys.modules.get("__mp_main__", sys.modules["__main__"]) is not sys.modules["__main__"]:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))

from focal_det.cli.main import main

if __name__ == "__main__":
    __spec__ = None  # then a rank runs this file as it starts; with a spec, multiprocessing leaves __main__.py out
    sys.exit(main())
