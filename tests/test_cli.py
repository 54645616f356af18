"""The command: help everywhere, errors as one line, a pair kept in the foreground and asked from outside, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfckpt.config import example, loads
from nfckpt.deploy.control import ControlServer, ask, pairs
from nfckpt.errors import ConfigError, ProtectionError
from nfckpt.observe.events import EventLog
from nfckpt.ports import MemoryHub

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ["", "demo", "run", "status", "failover", "receipts", "events", "config", "config check", "config example", "key", "doctor",
            "testbed", "testbed up", "testbed down", "testbed clean", "testbed run", "version"]
RECEIPT_KEYS = {"term", "node", "reason", "proof", "exact", "committed_epoch", "uncommitted", "replayed", "reemitted", "suppressed",
                "doubled", "active_missed", "stranded", "tap_missed", "quarantined", "steps_us", "lost", "blank", "ports", "digests", "time"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "nfckpt", *args]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(run), "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "120", "NO_COLOR": "1"}


def nfckpt(*args: str, env: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), env=env, cwd=cwd, text=True, capture_output=True, timeout=60)


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value


# ── help and small commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name: str, environment: dict[str, str]) -> None:
    done = nfckpt(*name.split(), "--help", env=environment)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout and "Traceback" not in done.stderr
    if name not in ("", "config", "testbed", "version"):
        assert "Example" in done.stdout, "every command shows how it is used"


def test_help_imports_nothing_heavy(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "nfckpt", "--help"], env=environment, cwd=ROOT, text=True,
                          capture_output=True, timeout=60)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0 and "nfckpt.cli" in imported
    assert not imported & {"numpy", "ray", "scapy", "pyroute2", "msgspec", "cryptography", "prometheus_client"}


def test_key_and_version(environment: dict[str, str]) -> None:
    keys = {nfckpt("key", env=environment).stdout.strip() for _ in range(2)}
    assert len(keys) == 2 and all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    body = json.loads(nfckpt("version", "--json", env=environment).stdout)
    assert set(body) == {"nfckpt", "protocol", "python", "kernel"}


def test_a_wrong_option_is_said_in_words(environment: dict[str, str]) -> None:
    done = nfckpt("demo", "--kills", "none", env=environment)
    assert done.returncode == 2 and "--kills" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.box
def test_a_command_in_the_testbed_gives_its_exit_code(environment: dict[str, str]) -> None:
    done = nfckpt("testbed", "run", "--prefix", "tcli", "--", "sh", "-c", "ls /run/netns; exit 7", env=environment)
    assert done.returncode == 7, done.stderr
    assert done.stdout.split() == sorted(f"tcli-{role}" for role in ("client", "hub_lan", "a", "hub_rep", "b", "hub_wan", "server"))
    done = nfckpt("testbed", "run", "--prefix", "tcli", "--", "no-such-program", env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot run no-such-program")


# ── configuration


def test_the_example_is_good_and_says_every_bound() -> None:
    config = loads(example())
    assert config.profile == "hosts" and "# hold_us_max = 0" in example() and "unsafe_release_on_abort = false" in example()


@pytest.mark.parametrize(("old", "new", "message"), [
    ("# hold_us_max = 0", "hold_ms_max = 5", "unknown key 'hold_ms_max' in [bounds] (did you mean 'hold_us_max', a whole number of µs?)"),
    ("# hold_us_max = 0", 'hold_us_max = "5ms"', "hold_us_max = '5ms': Expected `int`, got `str` (a whole number of µs)"),
    ("# hold_us_max = 0", "hold_us_max = 0.5", "got `float`"),
    ("# hold_us_max = 0", "hold_us_max = true", "got `bool`"),
    ("# hold_us_max = 0", "hold_us_max = 5000000", "hold_us_max = 5000000: an output may not be held longer than a second"),
    ("# hold_us_max = 0", "hold_us_max = -1", "must not be negative"),
    ("# hang_ms_max = 400", "hang_ms_max = 10", "hang_ms_max = 10: must be at least four beats"),
    ("# rate_frames_per_s = 100000", "rate_frames_per_s = 100000000", "100000000 frames/s × 540 ms of outage need 54000000"),
    ("# rx_ring_frames = 16384", "rx_ring_frames = 100", "a multiple of 32"),
    ('profile = "hosts"', 'profil = "hosts"', "unknown key 'profil' in [pair] (did you mean 'profile'?)"),
    ('profile = "hosts"', 'profile = "hostz"', "profile = 'hostz'"),
    ('name = "edge-nat"', 'name = "../../etc"', "name = '../../etc'"),
    ('app = "nfckpt.apps.nat:Nat" ', 'app = "nat" ', "app = 'nat' (write it as \"module:Class\")"),
    ("cpu = 1", 'cpu = "x"', "cpu = 'x': Expected `int`, got `str`"),
    ("cpu = 1", "cpus = 1", "unknown key 'cpus' in [nodes.b] (did you mean 'cpu'?)"),
    ('address = "10.99.0.2:7701"', 'address = "10.99.0.2"', "nodes.b.address = '10.99.0.2' (profile hosts needs address"),
    ('address = "10.99.0.2:7701"', 'address = "10.99.0.1:7701"', "nodes.b.address is that of the other node"),
    ('"afpacket:lan@nf-b", ', "", "nodes.b.ports: 2 and 1 ports"),
    ('# metrics = "127.0.0.1:9464"', 'metrics = "9464"', "nodes.b.metrics = '9464' (an address"),
    ("# [[hooks]]", "[hooks]\non = []", "[hooks] is one table (each hook is one: [[hooks]])"),
    ("# [[hooks]]", '[[hooks]]\non = ["solo"]\nrun = []', "hooks.0: on = ['solo'], run = []"),
    ("[nodes.b]", "[nodez.b]", "unknown table [nodez]"),
    ("[nodes.b]", "[nodes.b", "Expected ']'"),
])
def test_a_bad_configuration_is_refused_at_its_line(old: str, new: str, message: str) -> None:
    text = example()
    assert text.count(old) == 1
    bad = text.replace(old, new)
    line = 1 + text[:text.index(old)].count("\n")
    with pytest.raises(ConfigError) as refused:
        loads(bad, "nat.toml")
    assert str(refused.value).startswith(f"nat.toml:{line}: "), refused.value
    assert message in str(refused.value)


@pytest.mark.parametrize(("text", "message"), [
    ("", "f:1: [pair] lacks `name`"), ("x = 3", "f:1: unknown table [x]"), ("bounds = 3", "f:1: bounds = 3 (it is a table"),
    ('[pair]\nname = "n"\napp = "m:C"\n[nodes.a]\n', "f:4: [nodes.a] lacks `ports`"),
    ('[pair]\nname = "n"\napp = "m:C"\n[[hooks]]\non = ["solo"]\nrun = ["x"]\n[[hooks]]\non = ["solo"]\nruns = ["x"]',
     "f:9: unknown key 'runs' in [hooks.1] (did you mean 'run'?)"),
    ('[pair]\nname = "n"\napp = "m:C"\n[nodes]\na = {ports = ["pcap:x"], speed = 1}', "f:5: unknown key 'speed' in [nodes.a]"),
])
def test_what_is_missing_is_refused_too(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(text, "f")
    assert str(refused.value).startswith(message)


def test_config_check(tmp_path: Path, environment: dict[str, str]) -> None:
    good = tmp_path / "good.toml"
    good.write_text(nfckpt("config", "example", env=environment).stdout)
    done = nfckpt("config", "check", str(good), env=environment)
    assert done.returncode == 0 and "good" in done.stdout, done.stderr
    body = json.loads(nfckpt("config", "check", "--json", str(good), env=environment).stdout)
    assert body["ok"] and body["ports"] == ["inside", "outside"] and 0 < body["arena_used_bytes"] <= body["arena_bytes"]

    def refused(old: str, new: str) -> str:
        bad = tmp_path / "bad.toml"
        bad.write_text(good.read_text().replace(old, new))
        done = nfckpt("config", "check", str(bad), env=environment)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert json.loads(nfckpt("config", "check", "--json", str(bad), env=environment).stdout)["ok"] is False
        return done.stderr

    assert refused("cpu = 1", "cpu = []").startswith(f"error: {tmp_path}/bad.toml:24: cpu = []: ")
    assert "app = 'no.such.module:Nat'" in refused("nfckpt.apps.nat:Nat", "no.such.module:Nat")
    assert "[app] of nfckpt.apps.nat:Nat" in refused("inside_ip =", "insight_ip =")
    assert "'afpackets:lan@nf-b' is no port" in refused('"afpacket:lan@nf-b"', '"afpackets:lan@nf-b"')
    assert "does not fit" in refused("# arena_bytes = 67108864", "arena_bytes = 8192")
    missing = nfckpt("config", "check", "/no/such/file", env=environment)
    assert missing.returncode == 2 and missing.stderr.startswith("error: /no/such/file: No such file")


# ── a pair in the foreground


class Running:
    """`nfckpt run` of a counter between two memory hubs, and its client's ends."""

    def __init__(self, folder: Path, env: dict[str, str], *args: str, port: int) -> None:
        self.hubs = [MemoryHub(3, 4096) for _ in range(2)]
        self.env = env
        with contextlib.ExitStack() as free:
            self.metrics = {node: free.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for node in "ab"}
        self.config = folder / "pair.toml"
        nodes = "".join(
            f'[nodes.{node}]\naddress = "127.0.0.1:{port + i}"\nmetrics = "127.0.0.1:{self.metrics[node]}"\nports = [{", ".join(self._port(hub, i) for hub in self.hubs)}]\n'
            for i, node in enumerate("ab", 1))
        self.config.write_text(
            '[pair]\nname = "wire"\napp = "nfckpt.apps.counter:Counter"\n[app]\nflows_max = 1024\n'
            f"[bounds]\narena_bytes = 1048576\n{nodes}")
        self.process = subprocess.Popen(command("run", "--local", "--json", *args, str(self.config)), env=env, cwd=folder, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _port(self, hub: MemoryHub, endpoint: int) -> str:
        spec = hub.endpoint_spec(endpoint, by_path=True)
        return f'{{scheme = "mem", endpoint = {endpoint}, fds = {json.dumps(spec["fds"])}}}'

    def status(self) -> dict[str, Any]:
        done = nfckpt("status", "--json", env=self.env)
        return json.loads(done.stdout) if done.returncode == 0 else {"protected": False, "error": done.stderr}

    def wait_protected(self, unlike: str = "") -> dict[str, Any]:
        def protected() -> dict[str, Any] | None:
            status = self.status()
            return status if status["protected"] and status["active"] != unlike else None
        found: dict[str, Any] = until(protected)
        return found

    def end(self, number: int = signal.SIGINT) -> tuple[str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        for hub in self.hubs:
            hub.close()
        return out, err


@pytest.fixture
def running(tmp_path: Path, environment: dict[str, str]) -> Iterator[Running]:
    pair = Running(tmp_path, environment, "--log", str(tmp_path / "events.jsonl"), port=7831)
    try:
        yield pair
    finally:
        if pair.process.poll() is None:
            pair.process.kill()
            pair.process.communicate()


def test_run_status_failover_receipts_and_the_end(running: Running, tmp_path: Path) -> None:
    env = running.env
    status = running.wait_protected()
    assert status["pair"] == "wire" and status["profile"] == "host" and status["active"] == "a"
    assert set(status) == {"pair", "profile", "app", "active", "protected", "keeper_pid", "nodes", "trouble", "if_it_died_now"}
    assert status["trouble"] is None and status["if_it_died_now"]["outage_ms"]["hang"]["total"] >= 100
    assert {s["role"] for s in status["nodes"].values()} == {"active", "standby"}
    socket_path = Path(env["XDG_RUNTIME_DIR"], "nfckpt", "wire.ctl")
    assert socket_path.stat().st_mode & 0o777 == 0o600 and socket_path.parent.stat().st_mode & 0o777 == 0o700

    shown = nfckpt("status", "--pair", "wire", env=env)
    assert "wire" in shown.stdout and "active" in shown.stdout and "NOT" not in shown.stdout
    assert "if a died now" in shown.stdout and "expected outage" in shown.stdout
    second = nfckpt("run", "--local", str(running.config), env=env)
    assert second.returncode == 2 and second.stderr.startswith("error: a pair named 'wire' already runs")

    moved = json.loads(nfckpt("failover", "--json", env=env).stdout)
    assert moved == {"pair": "wire", "from": "a", "to": "b"}
    status = running.wait_protected()
    assert status["active"] == "b" and status["nodes"]["b"]["term"] == 2

    os.kill(status["nodes"]["b"]["pid"], signal.SIGKILL)
    running.wait_protected(unlike="b")
    found = until(lambda: [r for r in json.loads(nfckpt("receipts", "--json", env=env).stdout)["receipts"] if r["term"] == 3])
    assert set(found[0]) == RECEIPT_KEYS and found[0]["proof"] and found[0]["exact"]
    assert "term 3" in nfckpt("receipts", env=env).stdout

    for node in "ab":
        body = urllib.request.urlopen(f"http://127.0.0.1:{running.metrics[node]}/metrics", timeout=5).read().decode()
        assert f'nfckpt_protected{{node="{node}",pair="wire"}} 1.0' in body and f'nfckpt_term{{node="{node}",pair="wire"}} 3.0' in body
    told = [json.loads(line) for line in nfckpt("events", "--json", env=env).stdout.splitlines()]
    assert [row["n"] for row in told] == list(range(1, len(told) + 1)) and "takeover" in nfckpt("events", env=env).stdout

    pids = [s["pid"] for s in running.status()["nodes"].values()]
    out, err = running.end()
    assert running.process.returncode == 130 and err == "", err
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["term"] for row in rows if row["event"] == "active"] == [1, 2, 3]
    assert not socket_path.exists() and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    kept = json.loads(nfckpt("receipts", "--json", "--pair", "wire", env=env).stdout)["receipts"]
    assert [r["term"] for r in kept] == [2, 3] and kept[1] == found[0], "receipts outlive the run"
    gone = nfckpt("status", env=env)
    assert gone.returncode == 2 and gone.stderr == "error: no pair runs here (start one with `nfckpt run CONFIG.toml`)\n"


def test_a_killed_run_leaves_nothing_that_is_in_the_way(running: Running) -> None:
    pids = [s["pid"] for s in running.wait_protected()["nodes"].values()]
    running.end(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 5)
    again = Running(running.config.parent, running.env, port=7841)
    try:
        again.wait_protected()
    finally:
        _, err = again.end(signal.SIGTERM)
    assert again.process.returncode == 0 and err == ""


def test_a_port_that_is_not_there_ends_the_run_with_its_reason(tmp_path: Path, environment: dict[str, str]) -> None:
    config = tmp_path / "pair.toml"
    config.write_text('[pair]\nname = "none"\napp = "nfckpt.apps.counter:Counter"\n'
                      '[nodes.a]\nports = ["pcap:/no/such.pcap", "pcap:,x.pcap"]\n[nodes.b]\nports = ["pcap:/no/such.pcap", "pcap:,y.pcap"]\n')
    done = nfckpt("run", "--local", str(config), env=environment, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: node a: "), done.stderr
    assert "/no/such.pcap" in done.stderr and done.stderr.count("\n") == 1
    assert not list(Path(environment["XDG_RUNTIME_DIR"], "nfckpt").iterdir())


# ── control socket, events, metrics


def test_control_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def answer(verb: str, node: str) -> dict[str, Any]:
        if verb == "no":
            raise ProtectionError("it is not", "wait")
        return {"verb": verb, "node": node}

    with ControlServer("one", answer) as server:
        assert ask(None, "x", "b") == {"verb": "x", "node": "b"} and ask("one", "x") == {"verb": "x", "node": ""} and pairs() == ["one"]
        with pytest.raises(ProtectionError, match="it is not"):
            ask("one", "no")
        with pytest.raises(ConfigError, match="already runs"):
            ControlServer("one", answer)
        with pytest.raises(ProtectionError, match="no pair 'two'"):
            ask("two", "x")
        for junk in (b"\n", b"[]\n", b"{", b"\xff\xfe\n", b"x" * 10_000 + b"\n"):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(server.path))
                s.sendall(junk)
                s.shutdown(socket.SHUT_WR)
                assert json.loads(s.recv(65536))["ok"] is False
        with ControlServer("two", answer), pytest.raises(ProtectionError, match="2 pairs run here: one, two"):
            ask(None, "x")
    assert pairs() == [] and not server.path.exists()


def test_events_are_bounded_on_disk(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl", file_bytes_max=300)
    for i in range(20):
        log.add({"event": "tick", "node": "a", "i": i})
    log.close()
    kept = [json.loads(line)["i"] for name in ("e.jsonl.1", "e.jsonl") for line in (tmp_path / name).read_text().splitlines()]
    assert kept == list(range(kept[0], 20)) and 0 < kept[0] < 19
    assert all((tmp_path / name).stat().st_size <= 300 for name in ("e.jsonl", "e.jsonl.1"))
    assert [row["i"] for row in log.rows] == list(range(20))


def test_a_full_disk_is_said_once_and_the_log_goes_on_in_memory() -> None:
    said: list[str] = []
    log = EventLog("/dev/full", on_error=said.append)
    for i in range(3):
        log.add({"event": "tick", "i": i})
    assert len(said) == 1 and "No space left on device" in said[0] and log.unwritten == 3 and len(log.rows) == 3


def test_a_reader_that_went_away_ends_the_run(running: Running) -> None:
    assert running.process.stdout
    running.process.stdout.close()
    assert running.process.wait(20) == 1
    assert running.process.stderr and running.process.stderr.read() == ""
    assert not list(Path(running.env["XDG_RUNTIME_DIR"], "nfckpt").iterdir())
