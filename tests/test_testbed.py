"""Testbed: the box takes everything with it, the hubs are hubs, the workload is clean and its referee can say no."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nfckpt.errors import ConfigError, MachineError
from nfckpt.testbed import box, netns, procs
from nfckpt.testbed.filters import lose
from nfckpt.testbed.topology import (
    GATEWAY_IP,
    NAT_IP,
    NODES,
    REP_IPS,
    ROLES,
    Testbed,
    clean,
    leftovers,
)
from nfckpt.testbed.traffic import Load, Workload, problems

pytestmark = pytest.mark.box
ROOT = Path(__file__).resolve().parent.parent
IN_BOX = "from nfckpt.testbed import box; import sys; sys.exit(box.run_in_box(sys.argv[1:]))"


@pytest.fixture
def bed() -> Iterator[Testbed]:
    prefix = f"t{os.getpid()}"
    clean(prefix)
    bed = Testbed(prefix)
    bed.up()
    yield bed
    bed.down()
    assert leftovers(prefix) == []


def outer(code: str, **kwargs: object) -> subprocess.Popen[str]:
    """A process that runs `python -c code` in a box."""
    return subprocess.Popen([sys.executable, "-c", IN_BOX, "-c", code], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)  # type: ignore[call-overload,no-any-return]


def pids_with(mark: str) -> list[int]:
    """Processes whose command line holds the mark, ours excepted."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def gone_within(mark: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while pids_with(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ---- box


def test_a_box_works_here() -> None:
    assert box.available() is None
    assert not box.inside()


@pytest.mark.parametrize(("code", "status"), [
    ("import sys; sys.exit(7)", 7),
    ("import os; os.kill(os.getpid(), 9)", 128 + 9),
    ("from nfckpt.testbed import box; assert box.inside()", 0),
    ("import os; assert os.listdir('/run') == ['netns'] and os.listdir('/sys/class') and os.getppid() == 1", 0),
    ("import socket; assert 'eth0' not in [n for _, n in socket.if_nameindex()]; s = socket.create_server(('127.0.0.1', 0));"
     "socket.create_connection(s.getsockname())", 0),
])
def test_exit_status_and_the_inside(code: str, status: int) -> None:
    with outer(code) as process:
        out, err = process.communicate(timeout=20)
        assert process.returncode == status, (out, err)


def test_enter_box_runs_the_same_command_inside(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
                      "from nfckpt.testbed import box\nbefore = box.inside()\nbox.enter_box()\n"
                      "print(before, box.inside(), sys.argv[1:])\nsys.exit(3)\n")
    done = subprocess.run([sys.executable, str(script), "a", "b c"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (3, "True True ['a', 'b c']\n"), done.stderr


BUSY = """
import subprocess, sys, time
from nfckpt.testbed.filters import lose
from nfckpt.testbed.topology import Testbed
Testbed("inner").up()
subprocess.Popen(["setsid", sys.executable, "-c", "import time; time.sleep(600) # MARK"])
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600) # MARK"])
time.sleep(0.2)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_outer_dies_and_nothing_is_left(how: signal.Signals) -> None:
    mark = f"mark-{os.getpid()}-{how}"
    with outer(BUSY.replace("MARK", mark)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.stderr and process.stderr.read()
        assert len(pids_with(mark)) >= 5    # outer, keeper, pid 1, driver, two children
        process.send_signal(how)
        started = time.monotonic()
        process.wait(10)
        assert gone_within(mark, 1.0)
        print(f"{how.name}: gone {1000 * (time.monotonic() - started):.0f} ms after the signal")
    assert leftovers("inner") == []


COUNT = """
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("ready", flush=True)
deadline = time.monotonic() + 10
while not got and time.monotonic() < deadline: time.sleep(0.01)
time.sleep(0.3)
sys.exit(len(got))
"""


def test_an_interrupt_reaches_the_driver_once() -> None:
    with outer(COUNT) as process:       # sent to outer alone
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 1

    pid, terminal = os.forkpty()        # typed at a terminal: its whole foreground group gets it
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", IN_BOX, "-c", COUNT])
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 100)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 1


# ---- namespaces


def test_errors_say_what_to_do() -> None:
    with pytest.raises(MachineError, match="is the testbed up"):
        netns.run_in("never-made", time.monotonic)
    with pytest.raises(ConfigError, match="prefix"):
        Testbed("a/b")
    with pytest.raises(ConfigError, match="client"):
        Testbed("x").ns("switch")


def test_popen_in_survives_a_parent_death_signal(bed: Testbed) -> None:
    code = "import ctypes, os, time; ctypes.CDLL(None).prctl(1, 9); print(os.readlink('/proc/self/ns/net'), flush=True); time.sleep(600)"
    child = netns.popen_in(bed.ns("client"), [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        there = os.stat(netns.NETNS_DIR / bed.ns("client")).st_ino
        assert child.stdout.readline() == f"net:[{there}]\n"
        time.sleep(0.1)
        assert child.poll() is None
        assert procs.members(bed.ns("client")) == sorted({child.pid, os.getpid()})   # ours: the thread that is its parent
    finally:
        child.kill()
        child.wait()


# ---- topology


def port(bed: Testbed, role: str, device: str) -> socket.socket:
    def open_port() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        s.bind((device, 0x0003))
        s.settimeout(1.0)
        return s
    return netns.run_in(bed.ns(role), open_port)


def wait_for(s: socket.socket, frame: bytes) -> bool:
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            if s.recv(2048) == frame:
                return True
        except TimeoutError:
            return False
    return False


def test_hubs_show_every_frame_to_all(bed: Testbed) -> None:
    frame = bytes.fromhex("020000000001" "020000000000" "88b5") + bytes(range(50))     # unicast to nobody in particular
    with port(bed, "client", "eth0") as client, port(bed, "a", "lan") as a, port(bed, "b", "lan") as b, port(bed, "a", "wan") as far:
        for _ in range(2):      # twice: a switch would have learned by then
            client.send(frame)
            assert wait_for(a, frame) and wait_for(b, frame)
            a.send(frame)
            assert wait_for(client, frame) and wait_for(b, frame)
        far.settimeout(0.05)
        assert not wait_for(far, frame)     # two hubs, not one


def test_segments_are_silent_and_offloads_off(bed: Testbed) -> None:
    ports = [port(bed, node, device) for node in NODES for device in ("lan", "wan")]
    time.sleep(0.5)
    for s in ports:
        s.settimeout(0)
        with pytest.raises(BlockingIOError):
            s.recv(2048)
        s.close()
    for role in ROLES:
        expected = {"client": {"eth0"}, "server": {"eth0"}, "hub_lan": {"client", "a", "b"}, "hub_wan": {"server", "a", "b"}, "hub_rep": {"a", "b"}}
        devices = expected.get(role, {"lan", "wan", "rep"})
        assert devices <= {name for _, name in netns.run_in(bed.ns(role), socket.if_nameindex)}
        for device in devices - {"rep"} if role != "hub_rep" else ():
            assert not any(netns.run_in(bed.ns(role), netns.offloads, device).values()), (role, device)


def test_cut_mend_and_machine_death(bed: Testbed) -> None:
    frame = bytes.fromhex("020000000001" "020000000000" "88b5") + bytes(50)
    with port(bed, "client", "eth0") as client, port(bed, "a", "lan") as a, port(bed, "b", "lan") as b:
        started = time.monotonic()
        bed.links_down("a")
        took = time.monotonic() - started
        client.send(frame)
        assert wait_for(b, frame)
        a.settimeout(0.05)
        assert not wait_for(a, frame)
        bed.links_up("a")
        bed.cut("b.lan")
        client.send(frame)
        assert wait_for(a, frame)
        b.settimeout(0.05)
        assert not wait_for(b, frame)
        bed.mend("b.lan")
        client.send(frame)
        assert wait_for(b, frame)
    assert took < 0.1
    print(f"all links of a node down in {1000 * took:.1f} ms")


def test_a_port_loses_frames_at_random(bed: Testbed) -> None:
    """What lies behind the kernel's packet sockets: they see a frame before it is dropped."""
    def udp(node: str) -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((REP_IPS[node], 7777))
        s.setblocking(False)
        return s

    def came(percent: int, frames: int) -> int:
        netns.run_in(bed.ns("b"), lose, "rep", percent)
        got, left, got_some = 0, frames, True
        while left or got_some:
            got_some = False
            for _ in range(min(left, 50)):
                a.sendto(b"frame", (REP_IPS["b"], 7777))
                left -= 1
            time.sleep(0.001)
            with suppress(BlockingIOError):
                while True:
                    got += len(b.recv(64)) == 5
                    got_some = True
        return got

    with netns.run_in(bed.ns("a"), udp, "a") as a, netns.run_in(bed.ns("b"), udp, "b") as b:
        assert came(0, 200) == 200                              # the neighbours know each other now
        assert [came(100, 200), came(0, 200)] == [0, 200]
        assert 1440 < came(20, 2000) < 1760                     # 1,600 are expected, nine standard deviations either way


def test_a_port_held_after_down_reaches_nobody() -> None:
    frame = bytes.fromhex("020000000001" "020000000000" "88b5") + bytes(50)
    bed = Testbed(f"h{os.getpid()}")
    bed.up()
    with port(bed, "a", "lan") as a, port(bed, "client", "eth0") as client:
        a.send(frame)
        assert wait_for(client, frame)
        bed.down()
        with suppress(OSError):     # the device may be gone by now
            a.send(frame)
        client.settimeout(0.1)
        with suppress(OSError):
            assert not wait_for(client, frame)


def test_replication_link(bed: Testbed) -> None:
    def listen(address: str) -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.bind((address, 7000))
        s.settimeout(0.05)
        return s

    def arrives() -> bool:
        for _ in range(20):         # the neighbour may have to be asked for again
            with suppress(OSError):
                a.sendto(b"x", ("10.99.0.2", 7000))
            with suppress(TimeoutError):
                return b.recv(10) == b"x"
        return False

    with netns.run_in(bed.ns("a"), listen, "10.99.0.1") as a, netns.run_in(bed.ns("b"), listen, "10.99.0.2") as b:
        assert arrives()
        bed.cut("b.rep")
        assert not arrives()
        bed.mend("b.rep")
        assert arrives()


def test_two_testbeds_and_leftovers(bed: Testbed) -> None:
    with pytest.raises(MachineError, match="clean"):
        Testbed(bed.prefix).up()
    other = f"{bed.prefix}x"
    with Testbed(other) as second:
        assert second.is_up() and bed.is_up()
        sleeper = netns.popen_in(second.ns("server"), ["sleep", "600"])
        gone = clean(other)
        assert sleeper.wait(5) == -signal.SIGKILL
        assert set(gone) == {*(f"{other}-{role}" for role in ROLES), f"pid {sleeper.pid}"}
    assert leftovers(other) == [] and bed.is_up()


def test_the_owner_of_a_port_is_found(bed: Testbed) -> None:
    code = "import socket, sys; s = socket.socket(17, 3, 0); s.bind(('wan', 3)); print('ready', flush=True); sys.stdin.read()"
    with pytest.raises(MachineError, match="0 processes"):
        procs.owner(bed.ns("a"), "wan")
    child = netns.popen_in(bed.ns("a"), [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        assert procs.owner(bed.ns("a"), "wan") == child.pid
        assert procs.owners(bed.ns("a"), "lan") == []
    finally:
        child.kill()
        child.wait()


# ---- workload, with the kernel's own router in place of the network function


def route_through(bed: Testbed, node: str) -> None:
    """Let the kernel of `node` forward between the hubs, and tell the server the way back: no translation."""
    from pyroute2 import IPRoute

    def forward() -> None:
        with IPRoute() as ip:
            for device, address in ("lan", GATEWAY_IP), ("wan", NAT_IP):
                netns.set_flags(device, off=netns.NOARP)
                ip.addr("add", index=ip.link_lookup(ifname=device)[0], address=address, prefixlen=24)
        netns.sysctl("net/ipv4/ip_forward", 1)

    def back() -> None:
        with IPRoute() as ip:
            ip.route("add", dst="10.0.0.0/24", gateway=NAT_IP)

    netns.run_in(bed.ns(node), forward)
    netns.run_in(bed.ns("server"), back)


LIGHT = Load(tcp_connections=50, web_file_bytes=100_000)


def test_a_clean_run_loses_nothing(bed: Testbed) -> None:
    route_through(bed, "a")
    with Workload(bed, LIGHT) as work:
        work.start()
        time.sleep(3.0)
        assert work.live()["udp server"]["received"] > 0
        result = work.stop()
    print(result)
    assert problems(result) == []
    assert result["udp"]["sent"] == result["udp"]["received"] > 0.5 * 20_000 * result["seconds"]
    assert result["udp_reverse"]["sent"] == result["udp_reverse"]["received"] > 0.5 * 2_000 * result["seconds"]
    assert {tuple(source) for source in result["udp"]["sources"]} == {(f"10.0.0.{2 + i}", 40_000 + i) for i in range(8)}
    assert result["tcp"]["connections"] >= 50 + 0.7 * 20 * 3 and result["tcp"]["blocks"] > 500
    assert result["web"] is None or result["web"]["fetched"] > 0
    assert result["kills"] == []


def test_an_outage_is_seen_and_measured(bed: Testbed) -> None:
    route_through(bed, "a")
    with Workload(bed, LIGHT) as work:
        work.start()
        time.sleep(0.5)
        work.mark_kill()
        bed.links_down("a")
        time.sleep(0.3)
        bed.links_up("a")
        time.sleep(1.0)
        result = work.stop()
    print(result)
    assert result["valid"]
    assert 0.9 * 0.3 * 20_000 < result["udp"]["lost"] < 2 * 0.3 * 20_000
    assert result["udp"]["sent"] == result["udp"]["received"] + result["udp"]["lost"]
    assert 300 <= result["outage_ms"][0] < 600
    assert result["tcp"]["opened_during_outage"] > 0        # TCP waits and tries again: nothing fails
    assert problems(result) == [f"udp: {result['udp']['lost']} lost", f"udp_reverse: {result['udp_reverse']['lost']} lost"]


def test_an_outage_that_never_ends(bed: Testbed) -> None:
    route_through(bed, "a")
    with Workload(bed, Load(tcp_connections=5, tcp_opens_s=0)) as work:
        work.start()
        time.sleep(0.3)
        work.mark_kill()
        bed.cut("a.wan")
        time.sleep(1.5)
        result = work.stop()
    assert result["outage_ms"][0] >= 1400
    assert result["tcp"]["failed"] == 5
    assert any("failed" in line for line in problems(result))


def test_no_way_through_is_said(bed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfckpt.testbed.traffic.workload.READY_S_MAX", 1.0)
    with Workload(bed) as work, pytest.raises(MachineError, match="does the network function forward"):
        work.start()
    time.sleep(0.1)
    assert procs.members(bed.ns("client")) in ([], [os.getpid()])      # its programs went with it


def test_programs_end_with_their_workload(bed: Testbed) -> None:
    code = f"""
import os, signal, time
from nfckpt.testbed.filters import lose
from nfckpt.testbed.topology import Testbed
from nfckpt.testbed.traffic import Load, Workload
work = Workload(Testbed("{bed.prefix}"), Load(web_file_bytes=1000))
work.start()
os.kill(os.getpid(), signal.SIGKILL)
"""
    route_through(bed, "a")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 3.0
    while procs.members(bed.ns("client")) + procs.members(bed.ns("server")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
