"""Ports for stores that the tests open later."""

import os
import socket
from itertools import count

# Below 32768, from where Linux takes those of outgoing connections, and apart for processes that test at once: a port
# that was only free a moment ago may be another's by the time it is opened.
_candidates = count(10_000 + os.getpid() % 1000 * 20)


def free_port():
    """Return a port of this machine that is free, and was not returned before."""
    for port in _candidates:
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
