"""Random inputs for the code that reads files of unknown origin.

In the suite they are few and always the same. FOCAL_DET_FUZZ_EXAMPLES=N tries N inputs for each target, from the seed
FOCAL_DET_FUZZ_SEED, and prints how many were tried.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("FOCAL_DET_FUZZ_EXAMPLES")


def fuzz(strategy, *, quick):
    """Give a test the argument `tries`, a function (attempt, name) that calls attempt with one input after another.

    Args:
        strategy: hypothesis' strategy for the inputs.
        quick: number of inputs in the suite.
    """

    def try_all(attempt, name):
        tried, start = [0], time.monotonic()

        @seed(int(os.environ.get("FOCAL_DET_FUZZ_SEED", "0")))
        @settings(
            max_examples=int(EXAMPLES or quick),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(strategy)
        def one(value):
            tried[0] += 1
            attempt(value)

        one()
        if EXAMPLES:
            print(f"\nfuzzed {name}: {tried[0]} inputs in {time.monotonic() - start:.0f} s")

    return pytest.mark.parametrize("tries", [try_all], ids=[""])


def mutated(*originals):
    """Return a strategy for one of these bytes objects with bytes replaced, removed, inserted, repeated or cut off."""
    edits = st.lists(
        st.tuples(st.sampled_from("rrritdc"), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
        min_size=1,
        max_size=8,
    )

    def change(original, edits):
        for kind, where, new in edits:
            at = int(where * len(original))
            if kind == "r":
                original = original[:at] + new + original[at + len(new) :]
            elif kind == "i":
                original = original[:at] + new * len(new) + original[at:]
            elif kind == "t":
                original = original[:at] + original[at + 8 * len(new) :]
            elif kind == "d":
                original = original[:at] + original[max(0, at - 40) :]
            else:
                original = original[:at]
        return original

    return st.builds(change, st.sampled_from(originals), edits)
