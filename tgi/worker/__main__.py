"""`python -m tgi.worker RANK RANKS STORE`: one rank, a child of `tgi.child`.

Through STORE, a URL for `Device.connect`, it finds the other ranks.
"""

import gc
import sys

from tgi.parent import Parent, leave


def main() -> int:
    """Run until the server closes the socket; return the exit code, 0 unless a command failed."""
    parent = Parent.of_this_process()
    parent.leave_together()
    # The rest of the process is imported only now, so that it cannot outlive a server that dies meanwhile.
    # Nearly all that imports make stays: looking for garbage among it would take a sixth of their time, and
    # later interrupt steps.
    gc.disable()
    import torch

    from tgi.weights import Shard

    from .loop import serve

    gc.freeze()
    gc.enable()
    torch.set_num_interop_threads(1)
    rank, ranks, store = sys.argv[1:]
    return 0 if serve(parent, Shard(int(rank), int(ranks)), store) else 1


if __name__ == "__main__":
    leave(main())
