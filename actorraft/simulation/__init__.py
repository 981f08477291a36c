"""The production core, control, executor and sessions under virtual time.

stepwise.py         RaftSimulation: a cluster to step through by hand
scenarios.py        Figures 7 and 8 of the paper, ready to be played on
world.py            a seeded world of faults; `python -m actorraft.simulation --seeds 1000`
invariants.py       what must be true after every event
linearizability.py  what must be true of clients' histories
"""

from actorraft.simulation.invariants import InvariantViolation
from actorraft.simulation.stepwise import RaftSimulation

__all__ = ["InvariantViolation", "RaftSimulation"]
