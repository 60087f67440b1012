"""How long threads spin while they wait for one another.

GNU OpenMP, which torch's CPU builds have, lets them spin for milliseconds by default. Where other
processes want the cores too, the thread that all wait for does not get on: with two threads and six
busy processes on two cores a training step took four times as long and more. Threads that sleep at
once lose a quarter on an idle machine. A thousand turns lose neither (docs/results/sweeps.md), and
change no bits.
"""

import os

VARIABLE, TURNS = "GOMP_SPINCOUNT", "1000"


def short_spin() -> dict[str, str]:
    """Environment for threads that spin shortly, unless the environment says how they wait.

    It is read when the library is loaded: before torch is imported.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    return {VARIABLE: os.environ.get(VARIABLE, TURNS)}
