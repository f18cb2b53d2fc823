"""A stand-in for CUDA graphs on a processor: operators are recorded once and repeated into the same tensors."""

import weakref

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

_alive = weakref.WeakSet()  # every recorder


class RecordedGraphs:
    """Does as `CudaGraphs`: nothing of a function runs again in Python, and each tensor stays where it was.

    Attributes:
        launches: of each recording, how many operators write something.
        fail: an exception to raise when recording; None for none.
    """

    def __init__(self, device, max_bytes=1 << 40, fail=None):
        self.max_bytes, self.fail, self.launches, self.warm_ups = max_bytes, fail, [], 0

    def warm_up(self, function):
        self.warm_ups += 1
        function()

    def record(self, function):
        if self.fail:
            raise self.fail
        with Recorder() as recorder:
            result = function()
        self.launches.append(sum(not is_view for *_, is_view in recorder.operators))
        return result, recorder.replay


class Recorder(TorchDispatchMode):
    """Keeps each operator with its arguments and results, as the pool of a graph keeps their memory."""

    def __init__(self):
        super().__init__()
        self.operators = []
        _alive.add(self)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        returns = operator._schema.returns
        is_alias = any(one.alias_info is not None for one in returns)
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in operator._schema.arguments)
        self.operators.append((operator, args, kwargs or {}, results, is_alias and not writes))
        return results

    def replay(self):
        for operator, args, kwargs, results, is_view in self.operators:
            if is_view:
                continue
            found = operator(*args, **kwargs)
            kept, new = ([x] if not isinstance(x, (tuple, list)) else x for x in (results, found))
            for before, after in zip(kept, new, strict=True):
                if hasattr(before, "copy_") and before is not after:
                    before.copy_(after)


@pytest.fixture(autouse=True)
def _recordings_end_with_their_test():
    """Free them: they and the autograd nodes that keep them are a cycle through C++, which no collector sees."""
    yield
    for recorder in list(_alive):
        recorder.operators.clear()
