"""A disk that is full, for tests of what is then said and left."""

import resource
from contextlib import contextmanager


@contextmanager
def room_for(size):
    """Let this process write files of at most so many bytes; more of one is an OSError, as from a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
