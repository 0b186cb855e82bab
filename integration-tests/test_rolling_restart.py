"""Two replicas are restarted one after the other, while clients that try again lose nothing."""

import itertools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

RATE = 20.0
PARAMETERS = {"max_new_tokens": 5}


@pytest.mark.slow
@pytest.mark.seconds(300)
def test_no_request_of_20_a_second_fails_while_two_replicas_are_restarted(start: Any) -> None:
    options = {"device": "slow", "environment": {"SLOW_SECONDS": "0.01"}, "drain_delay": 1}
    replicas = [start(**options).wait_ready() for _ in range(2)]
    ended = threading.Event()
    with ThreadPoolExecutor(64) as pool:
        requests = []

        def keep_sending() -> None:
            for number in itertools.count():
                if ended.wait(1 / RATE):
                    return
                requests.append(pool.submit(ask, replicas, number))

        sending = threading.Thread(target=keep_sending)
        sending.start()
        for index, old in enumerate(replicas):
            time.sleep(1)
            old.signal(signal.SIGTERM)
            assert old.wait_exit(60) == 0
            replicas[index] = start(port=old.port, **options).wait_ready()
        time.sleep(1)
        ended.set()
        sending.join()
        texts = {request.result() for request in requests}
    assert len(requests) > 2 * RATE
    assert len(texts) == 1
    for replica in replicas:
        replica.end()


def ask(replicas: list[Any], number: int) -> str:
    """Return the text of a replica; ask the other one if it refuses or has gone."""
    for attempt in range(10):
        try:
            status, answer = replicas[(number + attempt) % 2].post(
                "/generate", {"inputs": "What is a violin?", "parameters": PARAMETERS}
            )
        except (OSError, ValueError):  # no connection, or one that was cut
            continue
        if status == 200:
            return str(answer["generated_text"])
        assert status in (429, 503), answer
        time.sleep(0.05)
    raise AssertionError("both replicas refuse")
