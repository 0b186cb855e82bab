"""`python -m tgi.worker FD RANK RANKS`: one rank, at the other end of the inherited socket FD."""

import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Returns the exit code: 0 when the server closed the socket."""
    descriptor, rank, ranks = map(int, sys.argv[1:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    _die_with_parent()
    # The rest of the process is imported only now, so that it cannot outlive a server that dies meanwhile.
    import torch
    import torch.distributed

    from tgi.weights import Shard

    from .loop import serve

    torch.set_num_interop_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        with socket.socket(fileno=descriptor) as connection:
            serve(connection, Shard(rank, ranks))
    except Exception as error:
        print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent's thread ends, for whatever reason."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
