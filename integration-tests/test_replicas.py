"""Two replicas in one server: a rank is killed, and clients notice nothing but a pause."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PROMPTS = ["What is a violin?", "What is Deep Learning?", "Tell me of the sea.", "What is a bridge?"]


def samples(server: Any, name: str) -> dict[str, float]:
    found = re.findall(rf'^{name}{{replica="(\d)"}} (\S+)$', server.get("/metrics")[1], re.MULTILINE)
    return {replica: float(value) for replica, value in found}


def test_one_replica_recovers_while_the_other_serves(start: Any) -> None:
    server = start("tgi serve", {"SLOW_SECONDS": "0.1"}, device="slow", replicas=2, max_restarts=1)
    server.wait_ready()
    server.wait_for(lambda: "Connected: 2 replicas of " in server.output())
    ranks = server.ranks()
    assert len(ranks) == 2
    healthy = []

    def text(prompt: str) -> str:
        events = list(server.stream(prompt, max_new_tokens=15))
        generated: str = events[-1]["generated_text"]
        return generated

    with ThreadPoolExecutor(8) as threads:
        expected = list(threads.map(text, PROMPTS))
        streams = [threads.submit(text, prompt) for prompt in PROMPTS * 2]
        server.wait_for(lambda: all(samples(server, "tgi_replica_batch_size").values()))
        os.kill(min(ranks), signal.SIGKILL)
        while not all(stream.done() for stream in streams):
            healthy.append(server.health())
        assert [stream.result() for stream in streams] == expected * 2
    assert set(healthy) == {200}
    assert server.metric("tgi_engine_restarts") == 1
    server.wait_for(lambda: samples(server, "tgi_replica_serving") == {"0": 1, "1": 1})

    again = min(set(server.ranks()) - {max(ranks)})
    os.kill(again, signal.SIGKILL)  # beyond --max-restarts
    server.wait_for(lambda: samples(server, "tgi_replica_serving") == {"0": 0, "1": 1})
    server.wait_for(lambda: "giving up" in server.output())
    assert server.ranks() == [max(ranks)]
    assert server.health() == 200
    assert text(PROMPTS[0]) == expected[0]
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
