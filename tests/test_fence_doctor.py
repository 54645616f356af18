"""The doctor on this machine: as root, as an ordinary user, and where things are forbidden or broken."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nfckpt.observe import doctor

ROOT = Path(__file__).resolve().parent.parent


def as_an_ordinary_user(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python `code` as nobody. The interpreter of a test machine may lie under a closed home: in a mount namespace
    of its own, what nobody needs is shown again under an open directory of the same name."""
    script = ["set -e", "mount --make-rprivate /"]
    keep = dict.fromkeys(os.path.realpath(p) for p in (sys.base_prefix, sys.prefix, ROOT))
    closed = {a for p in keep for a in Path(p).parents if not a.stat().st_mode & 0o001}
    hidden = [p for p in keep if any(a in closed for a in Path(p).parents)]
    with tempfile.TemporaryDirectory() as d:
        for i, p in enumerate(hidden):
            script += [f"mkdir {d}/{i}", f"mount --bind {p} {d}/{i}"]
        script += [f"mount -t tmpfs -o mode=755 none {a}" for a in closed if not closed & set(a.parents)]
        for i, p in enumerate(hidden):
            script += [f"mkdir -p {p}", f"mount --bind {d}/{i} {p}"]
        script.append('cd / && exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all "$@"')
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(["unshare", "-m", "sh", "-c", "\n".join(script), "sh", sys.executable, "-c", code],
                              env=env, capture_output=True, text=True, timeout=60)


def state_of_the_host() -> tuple[object, ...]:
    tables = subprocess.run(["cat", "/proc/net/dev", "/proc/sys/net/core/rmem_max",
                             "/sys/kernel/mm/transparent_hugepage/enabled"], capture_output=True, text=True).stdout
    names = [line.split(":")[0] for line in tables.splitlines()]
    return socket.if_nameindex(), names, sorted(os.listdir("/dev/shm")), os.readlink("/proc/self/ns/net")


def test_everything_required_holds_here_and_nothing_of_the_host_changes(capsys: pytest.CaptureFixture[str]) -> None:
    before, t = state_of_the_host(), time.monotonic()
    assert doctor.run(as_json=True, device="lo") == 0
    assert time.monotonic() - t < 8
    assert state_of_the_host() == before
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    seen = {c["name"]: c for c in report["checks"]}
    for name in ("AF_PACKET V2 ring", "nftables egress fence", "veth and bridge", "memfd seals", "robust mutex", "pidfd",
                 "unprivileged user namespaces", "mmu tracker", "channel cipher", "compiler and Python headers"):
        assert seen[name]["ok"], seen[name]
    assert not seen["offloads of lo"]["ok"] and "ethtool -K lo" in seen["offloads of lo"]["remedy"]


def test_as_an_ordinary_user() -> None:
    done = as_an_ordinary_user("from nfckpt.observe import doctor; import sys; sys.exit(doctor.run(True))")
    assert done.stderr == ""
    seen = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, seen
    assert "user namespace" in seen["private network namespace"]["seen"]
    assert seen["AF_PACKET V2 ring"]["ok"] and seen["nftables egress fence"]["ok"] and seen["robust mutex"]["ok"]
    assert not seen["raw sockets here"]["ok"] and not seen["raw sockets here"]["required"]


def test_the_table_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [doctor.Check("one", True, "fine", required=True), doctor.Check("two [x]", False, "absent", "buy one"),
           doctor.Check("three", False, "broken", "mend it", required=True)]
    monkeypatch.setattr(doctor, "checks", lambda device=None: bad)
    assert doctor.run() == 1
    text = capsys.readouterr().out
    assert "FAILS" in text and "mend it" in text and "two [x]" in text and "buy one" in text
    monkeypatch.setattr(doctor, "checks", lambda device=None: bad[:2])
    assert doctor.run() == 0                            # what is not required does not fail


@pytest.mark.parametrize("trouble", ["import os; os.abort()", "import time; time.sleep(60)"])
def test_a_probe_that_crashes_or_hangs_is_a_failed_check(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_S_MAX", 0.5)
    real = doctor._child
    monkeypatch.setattr(doctor, "_child", lambda body, *a, **k: real(f"__name__; {trouble}; doctor._box", *a, **k))
    found = doctor._boxed()
    assert len(found) == len(doctor.BOX) and not any(c.ok for c in found)
    assert "died or hung" in found[0].seen


def test_where_user_namespaces_are_forbidden() -> None:
    """user.max_user_namespaces=0, set inside a user namespace of its own: the host's limit stays."""
    code = ("import os; from nfckpt.observe import doctor; doctor._userns(65534, 65534)\n"
            "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
            "print(doctor._try('x', doctor._user_namespaces, 'allow').ok)")
    done = as_an_ordinary_user(code)
    assert done.stdout == "False\n", done.stderr


def test_ray_settings_are_judged_without_importing_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*doctor.RAY_SETTINGS, "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert not doctor._try("ray", doctor._ray, "").ok
    for name, value in doctor.RAY_SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert doctor._try("ray", doctor._ray, "").ok
    assert "ray" not in sys.modules
