"""`python -m tgi.worker FD RANK RANKS FILE`: one rank, at the other end of the inherited socket FD.

Through FILE, which does not exist before, it finds the other ranks.
"""

import os
import select
import socket
import sys
import threading
from pathlib import Path


def main() -> int:
    """Returns the exit code: 0 when the server closed the socket."""
    descriptor, rank, ranks = map(int, sys.argv[1:4])
    _leave_with_server(descriptor)
    # The rest of the process is imported only now, so that it cannot outlive a server that dies meanwhile.
    import torch

    from tgi.weights import Shard

    from .loop import serve

    torch.set_num_interop_threads(1)
    with socket.socket(fileno=descriptor) as connection:
        return 0 if serve(connection, Shard(rank, ranks), Path(sys.argv[4])) else 1


def _leave_with_server(descriptor: int) -> None:
    """End this process as soon as the other end of the socket is closed, even in the middle of a step.

    Not prctl(PR_SET_PDEATHSIG): that follows the server's thread that started the rank, and trio's threads
    end when they have been idle for ten seconds.
    """
    watch = select.poll()
    watch.register(descriptor, 0)  # a hang-up is reported without asking

    def wait() -> None:
        watch.poll()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a thread of gloo's that lets go of a tensor while the interpreter ends aborts the process.
    os._exit(code)
