"""What the tests put into the way of a block's interpreter: calls that name no timeout have a minute, not 5 s.

A block is what a reader runs at a prompt; here it runs on a machine that may be twenty times too busy, on which a
leader's death alone can take seconds. Its text stays as printed. Only the block's own process is patient
(ACTORRAFT_PATIENT has its file): those of its nodes need no client.
"""

import os
import sys

if sys.orig_argv[-1] == os.environ.get("ACTORRAFT_PATIENT"):
    from tests.patience import be_patient

    be_patient()
