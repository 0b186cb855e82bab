"""Child processes: messages both ways, how they end, and that none is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import psutil
import pytest
import trio

from tgi.child import Child, start_child

ECHO = """
from tgi.parent import Parent
parent = Parent.of_this_process()
while (payload := parent.receive()) is not None:
    parent.send(payload[::-1])
"""
PARENT = "import time; from tgi.parent import Parent; parent = Parent.of_this_process(); "
HANGING = f"{PARENT}time.sleep(1000)"
LEAVING = f"{PARENT}parent.leave_together(); time.sleep(1000)"


@contextlib.asynccontextmanager
async def running(code: str, **options: object) -> AsyncIterator[Child]:
    child = await start_child("-c", code, **options)  # type: ignore[arg-type]
    async with contextlib.aclosing(child):
        yield child


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await trio.sleep(0.01)


async def test_messages_of_any_size_go_both_ways_in_order() -> None:
    async with running(ECHO) as child:
        payloads = [b"", b"ab", bytes(range(256)) * 4096, b"end"]
        async with trio.open_nursery() as nursery:
            for payload in payloads:
                await child.send(payload)

            async def receive() -> None:
                assert [await child.receive() for _ in payloads] == [payload[::-1] for payload in payloads]

            nursery.start_soon(receive)


async def test_many_messages_may_arrive_at_once() -> None:
    async with running(f"{PARENT}[parent.send(b'%d' % n) for n in range(999)]") as child:
        assert [await child.receive() for _ in range(999)] == [b"%d" % number for number in range(999)]
        assert await child.receive() is None


async def test_a_child_that_is_done_ends_the_messages() -> None:
    async with running("import sys; sys.exit(0)") as child:
        assert await child.receive() is None
        assert await child.ending() == "ended with exit code 0"


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import sys; sys.exit(3)", "ended with exit code 3"),
        ("print('noise'); raise KeyError('a\\nb')", r"ended with exit code 1: KeyError: 'a\nb'"),
        ("import sys; sys.exit('x' * 1000)", "ended with exit code 1: " + "x" * 200),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL (out of memory?)"),
        (
            "import os, sys; print('Bad address\\n', file=sys.stderr, flush=True); os.kill(os.getpid(), 6)",
            "was killed by SIGABRT: Bad address",
        ),
    ],
)
async def test_how_a_child_ended_is_one_line(code: str, ending: str) -> None:
    async with running(code) as child:
        assert await child.ending() == ending


async def test_a_message_to_a_child_that_has_gone_is_an_error() -> None:
    async with running("") as child:
        await child.process.wait()
        with pytest.raises(trio.BrokenResourceError):
            await child.send(b"x")


async def test_its_environment_and_its_own_standard_input() -> None:
    code = f"{PARENT}import os, sys; parent.send(os.environ['WHO'].encode() + sys.stdin.buffer.read())"
    async with running(code, environment={"WHO": "child"}) as child:
        assert await child.receive() == b"child"


async def test_ctrl_c_does_not_reach_a_child() -> None:
    async with running(HANGING) as child:
        assert os.getpgid(child.process.pid) == child.process.pid != os.getpgid(0)


async def test_cancelling_kills_a_child_and_what_it_has_started() -> None:
    code = (
        f"{PARENT}import subprocess, sys\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "parent.send(b'%d' % other.pid); other.wait()"
    )
    with trio.move_on_after(20) as scope:
        async with running(code) as child:
            grandchild = psutil.Process(int(await child.receive() or b""))
            scope.cancel()
            await child.receive()
    assert child.process.returncode == -signal.SIGKILL
    await until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


async def test_a_patient_parent_lets_a_child_leave_by_itself() -> None:
    async with running(LEAVING, patience=30) as child:
        pass
    assert child.process.returncode == 0
    async with running(HANGING, patience=0.1) as child:
        pass
    assert child.process.returncode == -signal.SIGKILL


def test_a_child_leaves_with_a_parent_that_is_killed() -> None:
    code = (
        "import trio; from tgi.child import start_child\n"
        f"async def main():\n child = await start_child('-c', {LEAVING!r})\n"
        " print(child.process.pid, flush=True); await trio.sleep_forever()\ntrio.run(main)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    end = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_a_program_that_cannot_be_started_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("sys.executable", "/none")
    with pytest.raises(FileNotFoundError):
        await start_child("-c", "")
    assert len(os.listdir("/proc/self/fd")) == before


async def test_closing_leaves_no_descriptor_behind() -> None:
    async with running(ECHO):  # what trio keeps open from now on
        pass
    before = len(os.listdir("/proc/self/fd"))
    async with running(ECHO) as child:
        await child.send(b"x")
        await child.receive()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full", "| true"])
def test_a_process_leaves_with_its_code_whatever_became_of_its_output(streams: str) -> None:
    """Text waits in stdout's buffer where there is one."""
    code = "import sys; from tgi.parent import leave; sys.stdout and sys.stdout.write('x'); leave(7)"
    command = f'set -o pipefail; (sleep 0.2; exec "$0" -c "$1") {streams}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command, sys.executable, code], env=environment, check=False)
    assert done.returncode == 7
