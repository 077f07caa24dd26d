"""A million random and mutated bodies of usage events, of a seed that is new each time."""

import os
import time

import pytest

from tests.unit.test_usage_fuzz import outcomes

BODIES = int(os.environ.get("SOAK_BODIES", "1000000"))


@pytest.mark.soak
def test_a_million_bodies_are_read_or_refused_and_nothing_else_happens():
    seed = time.time_ns() % 10**6
    print(f"\nseed {seed}")
    good = events = 0
    for taken in outcomes(BODIES, seed):
        good += bool(taken)
        events += taken
    print(f"{BODIES} bodies, {good} of them taken, with {events} events")
