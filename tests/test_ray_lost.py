"""Ray itself is lost: the GCS, a raylet, all of it. The packet processes forward on, for orphan_ms_max where their keepers went too.

Each runs in a box, whose end is the end of all that it started. Only a child in there is a driver: a driver does not outlive its
raylet, so what sends, counts and judges must not be one.

    pytest ── box ─┬─ this module's code: hubs, frames, what is asserted
                   └─ driver ── RayPair ── GCS, raylet ── keepers ── packet processes (sessions of their own)
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nfckpt.config import PairConfig
from nfckpt.deploy.ray_env import start_time
from tests.test_ray import ROOT, Log, Segment, eventually, in_box

ORPHAN_MS = 3000
WORKERS_END_S_MAX = 8.0         # about one, on an idle machine
ENDS_S_MAX = 4.0                # a process that waited in vain

DRIVER = """
import json, signal, sys, time, msgspec
from nfckpt.config import PairConfig
from nfckpt.deploy.ray_pair import RayPair

def say(name, at_ns, fields):
    sys.stdout.write(json.dumps([name, fields]) + "\\n")
    sys.stdout.flush()

pair = RayPair(msgspec.json.decode(sys.argv[1], type=PairConfig), on_event=say).start()
pair.wait_protected()
while not all(s["protected"] for s in pair.status().values()):
    time.sleep(0.05)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)      # reaped at once, as a host's init does: a worker takes a raylet that is not for alive
say("ready", 0, pair.status())
time.sleep(60)
"""


class Lost(Log):
    """A driver with a cluster and a pair of its own, and what it reported."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.process = subprocess.Popen([sys.executable, "-c", DRIVER, msgspec.json.encode(config).decode()], cwd=ROOT, text=True,
                                        stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": "/run"})
        threading.Thread(target=self._read, daemon=True).start()
        eventually(lambda: self.all("ready") or self.process.poll() is not None)
        self.nodes: dict[str, dict[str, Any]] = self.all("ready")[0]
        self.active = next(n for n, s in self.nodes.items() if s["role"] == "active")
        self.pids = [s["pid"] for s in self.nodes.values()]
        self.keepers = [s["keeper_pid"] for s in self.nodes.values()]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):     # of Ray's
                name, fields = json.loads(line)
                self(name, 0, fields)

    def daemon(self, name: str) -> int:
        """Pid of the driver's child that runs this program."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].endswith("/" + name)]
        assert len(found) == 1, f"{len(found)} {name}"
        return found[0]


@contextlib.contextmanager
def lost_pair(segment: Segment) -> Iterator[Lost]:
    config = segment.config("lost", "host")
    bounds = msgspec.structs.replace(config.bounds, orphan_ms_max=ORPHAN_MS)
    lost = Lost(msgspec.structs.replace(config, bounds=bounds))
    try:
        yield lost
    except BaseException:
        print(*lost.rows, sep="\n")
        raise
    finally:
        lost.process.kill()
        lost.process.wait()


def kill(first: int, *with_it: int) -> None:
    """The first is there; the others may go with one of those before them."""
    os.kill(first, signal.SIGKILL)
    for pid in with_it:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def forwards_until_late(segment: Segment, lost: Lost, since: float, pids: list[int]) -> int:
    """Both processes run, protected, until orphan_ms_max after `since`, and end soon after it. Returns how many frames had been sent by then."""
    time.sleep(max(0.0, since + ORPHAN_MS / 1000 - 0.3 - time.monotonic()))
    assert all(map(start_time, pids)) and time.monotonic() < since + ORPHAN_MS / 1000
    sent = segment.sent
    eventually(lambda: not any(map(start_time, pids)), ENDS_S_MAX)
    return sent


def gcs_killed() -> None:
    """Takeover and re-protection go on."""
    segment = Segment()
    with lost_pair(segment) as lost, segment:
        time.sleep(0.2)
        kill(lost.daemon("gcs_server"))
        time.sleep(1)
        kill(lost.nodes[lost.active]["pid"])
        eventually(lambda: len(lost.all("protected")) == 2 and lost.all("receipt"))
        time.sleep(0.5)
        assert lost.all("protected")[1]["node"] != lost.active and lost.all("receipt")[0]["exact"]
        assert all(map(start_time, lost.keepers)) and lost.process.poll() is None
        segment.stop()
        segment.check()


def raylet_killed() -> None:
    """Its workers end by themselves, and kill what they started. Until then nothing is lost; the pair may end, but not stay half alive."""
    segment = Segment()
    with lost_pair(segment) as lost, segment:
        time.sleep(0.2)
        kill(lost.daemon("raylet"))
        sent = [segment.sent]
        deadline = time.monotonic() + WORKERS_END_S_MAX
        while all(map(start_time, lost.pids + lost.keepers)):
            assert time.monotonic() < deadline, "the workers did not notice"
            sent.append(segment.sent)
            time.sleep(0.01)
        eventually(lambda: not any(map(start_time, lost.keepers)), WORKERS_END_S_MAX)
        eventually(lambda: not any(map(start_time, lost.pids)), ORPHAN_MS / 1000 + ENDS_S_MAX)
        segment.stop()
        segment.check(sent[max(0, len(sent) - 20)])


def cluster_killed() -> None:
    """All at once, the driver too. A takeover on proof needs none of it. A new pair, once the old processes are gone, starts blank."""
    segment = Segment()
    with lost_pair(segment) as lost, segment:
        time.sleep(0.2)
        kill(lost.process.pid, lost.daemon("gcs_server"), lost.daemon("raylet"), *lost.keepers)
        since = time.monotonic()
        time.sleep(1)
        kill(lost.nodes[lost.active]["pid"])
        sent = forwards_until_late(segment, lost, since, [s["pid"] for n, s in lost.nodes.items() if n != lost.active])
        segment.stop()
        segment.check(sent)
    with lost_pair(segment) as again, segment:
        first = segment.sent
        time.sleep(0.5)
        assert again.nodes[again.active]["term"] == 1
        segment.stop()
        segment.check(since=first)


@pytest.mark.box
@pytest.mark.ray
@pytest.mark.timeout(90)
@pytest.mark.parametrize("what", [gcs_killed, raylet_killed, cluster_killed])
def test_packets_flow_on_without(what: Callable[[], None]) -> None:
    in_box(f"from tests.test_ray_lost import {what.__name__}; {what.__name__}()")
