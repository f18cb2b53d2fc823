"""Ports for stores that the tests open later."""

import socket

_held = []


def free_port():
    """Return a port of this machine that is free, and stays this process's until it ends.

    The socket that holds it allows others beside it only now that it is bound, and never listens. So a store can open
    the port, whose socket allows others as well; and no other process is given it, neither by the system nor by this
    function, although it tests at the same time. Else a rank could join the store of another process's test.
    """
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _held.append(held)
    return held.getsockname()[1]
