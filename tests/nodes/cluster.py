"""A Ray cluster of several nodes on this machine, in a process of its own that takes orders by lines.

`python -m tests.nodes.cluster CPUS CPUS …`: a head without CPUs, and a node for each argument.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psutil

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Cluster:
    """The cluster, as tests see it."""

    address: str
    process: "subprocess.Popen[str]"

    def ask(self, *order: object) -> Any:
        """Have an order carried out; return its result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def kill_node_of(self, pid: int) -> None:
        """Kill the node on which that process runs."""
        above = [parent.pid for parent in psutil.Process(pid).parents()]
        self.ask("kill", above)

    def add(self, cpus: int, **environment: str) -> None:
        """Add a node."""
        self.ask("add", cpus, environment)

    def wait_until_free(self, cpus: float, seconds: float = 20) -> None:
        """Wait until that many CPUs are free: then no actor and no placement group is left."""
        deadline = time.monotonic() + seconds
        while (free := self.ask("free")) != cpus:
            assert time.monotonic() < deadline, free
            time.sleep(0.1)


@contextlib.contextmanager
def open_cluster(*cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start a cluster with these CPUs of its nodes, and end it on leaving."""
    command = [sys.executable, "-m", "tests.nodes.cluster", *map(str, cpus)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the cluster has not started"
        yield Cluster(json.loads(line), process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Carry out orders until standard input ends."""
    out, sys.stdout = sys.stdout, sys.stderr
    import ray
    from ray import cluster_utils

    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [cluster.add_node(num_cpus=int(count)) for count in sys.argv[1:]]
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    print(json.dumps(cluster.address), file=out, flush=True)
    for line in sys.stdin:
        result: Any = None
        match json.loads(line):
            case ["kill", above]:
                (node,) = [node for node in nodes if node.all_processes["raylet"][0].process.pid in above]
                nodes.remove(node)
                cluster.remove_node(node, allow_graceful=False)
            case ["add", count, environment]:
                nodes.append(cluster.add_node(num_cpus=count, env_vars=environment))
            case ["free"]:
                result = ray.available_resources().get("CPU", 0.0)
        print(json.dumps(result), file=out, flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
