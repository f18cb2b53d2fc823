"""Inputs made at random for what reads files that somebody gives.

Quick and the same each time in the suite. FOCAL_DET_FUZZ_EXAMPLES=N tries N inputs for each target, from the seed
FOCAL_DET_FUZZ_SEED, and says how many it tried.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("FOCAL_DET_FUZZ_EXAMPLES")


def fuzz(strategy, *, quick):
    """Calls the test with a function that gives one input after the other to what is tried."""

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
    """Bytes of one of these with bytes replaced, taken out, put in, repeated, or cut off."""
    edits = st.lists(
        st.tuples(st.sampled_from("rrritdc"), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
        min_size=1,
        max_size=8,
    )

    def change(original, edits):
        for kind, where, new in edits:
            place = int(where * len(original))
            if kind == "r":
                original = original[:place] + new + original[place + len(new) :]
            elif kind == "i":
                original = original[:place] + new * len(new) + original[place:]
            elif kind == "t":
                original = original[:place] + original[place + 8 * len(new) :]
            elif kind == "d":
                original = original[:place] + original[max(0, place - 40) :]
            else:
                original = original[:place]
        return original

    return st.builds(change, st.sampled_from(originals), edits)
