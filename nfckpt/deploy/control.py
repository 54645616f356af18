"""Control socket: how `nfckpt status`, `failover` and `receipts` reach the `nfckpt run` that keeps a pair.

Picture     nfckpt status ── {"verb": "status"}\n ──►  <folder>/<pair>.ctl  ──►  answer(verb, node)
                          ◄─ {"ok": true, "body": {…}}\n ──   or {"ok": false, "error": …, "hint": …}

One question a connection, both a line of JSON of at most LINE_BYTES_MAX. The folder is nfckpt in $XDG_RUNTIME_DIR
or /run/user/UID (a service has no such variable, and should be found from a shell that has), or /tmp/nfckpt-UID where there is neither:
mode 0700 and ours, so only this user (and root) may ask.

Promises    C1 one live pair a name: a second one is refused, whatever a killed one left behind.
            C2 `close` removes the socket.  C3 a client that is slow or silent holds up nobody but the other clients.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from nfckpt.errors import ConfigError, MachineError, NfckptError, ProtectionError

__all__ = ["ControlServer", "ask", "folder", "pairs"]

LINE_BYTES_MAX = 1 << 20
CLIENT_S_MAX = 2.0
ANSWER_S_MAX = 10.0


def folder() -> Path:
    """The private folder of control sockets, made when missing. Raises MachineError when somebody else owns it."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    path = Path(base, "nfckpt") if os.access(base, os.W_OK | os.X_OK) else Path(f"/tmp/nfckpt-{os.getuid()}")
    path.mkdir(mode=0o700, exist_ok=True)
    seen = path.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise MachineError(f"{path} is not a private folder of ours", "remove it, or set XDG_RUNTIME_DIR")
    return path


def pairs() -> list[str]:
    """Names of the pairs that answer now, sorted."""
    return sorted(path.stem for path in folder().glob("*.ctl") if _alive(path))


def ask(pair: str | None, verb: str, node: str = "") -> dict[str, Any]:
    """Ask a running pair (None: the only one), of one of its nodes where the question has one. Raises ProtectionError when there is none, or what it refused with."""
    if pair is None:
        running = pairs()
        if len(running) != 1:
            raise ProtectionError(f"{len(running)} pairs run here: {', '.join(running)}" if running else "no pair runs here",
                                  "name one with --pair" if running else "start one with `nfckpt run CONFIG.toml`")
        pair = running[0]
    path = folder() / f"{pair}.ctl"
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(ANSWER_S_MAX)
        try:
            s.connect(str(path))
            s.sendall(json.dumps({"verb": verb, "node": node}).encode() + b"\n")
            line = _line(s)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ProtectionError(f"no pair {pair!r} runs here", f"running: {', '.join(pairs()) or 'none'}") from None
        except OSError as e:
            raise ProtectionError(f"pair {pair!r} does not answer: {e}", "is its `nfckpt run` stopped?") from None
    try:
        said = json.loads(line)
        if said["ok"]:
            body: dict[str, Any] = said["body"]
            return body
        raise ProtectionError(said["error"], said["hint"])
    except (ValueError, KeyError, TypeError):
        raise ProtectionError(f"pair {pair!r} gave no answer to {verb}") from None


class ControlServer:
    """Answers on the socket of `pair` from a thread of its own: `answer(verb, node)` → JSON-able body, or NfckptError.

    Raises ConfigError when a pair of this name already runs.
    """

    def __init__(self, pair: str, answer: Callable[[str, str], dict[str, Any]]) -> None:
        self._answer = answer
        self.path = folder() / f"{pair}.ctl"
        self._socket = _claim(self.path, pair)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=f"control {pair}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket. Idempotent."""
        if self._thread.is_alive():
            self._stop.send(b"x")
            self._thread.join()
            self.path.unlink(missing_ok=True)
            for s in (self._socket, self._stop, self._stopped):
                s.close()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._socket, selectors.EVENT_READ)
            ready.register(self._stopped, selectors.EVENT_READ)
            while all(key.fileobj is not self._stopped for key, _ in ready.select()):
                with contextlib.suppress(OSError):          # the client went away
                    client, _ = self._socket.accept()
                    with client:
                        client.settimeout(CLIENT_S_MAX)
                        client.sendall(json.dumps(self._one(_line(client))).encode() + b"\n")

    def _one(self, line: bytes) -> dict[str, Any]:
        try:
            question = json.loads(line)
            verb, node = str(question["verb"]), str(question.get("node", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"ok": False, "error": "not a question", "hint": '{"verb": "status"} and a newline'}
        try:
            return {"ok": True, "body": self._answer(verb, node)}
        except NfckptError as e:
            return {"ok": False, "error": e.message, "hint": e.hint}


def _claim(path: Path, pair: str) -> socket.socket:
    """A listening socket at `path`. The folder is locked meanwhile, so that of two that start together one is refused."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _alive(path):
            raise ConfigError(f"a pair named {pair!r} already runs", "stop it, or give this one another [pair] name")
        path.unlink(missing_ok=True)
        s = socket.socket(socket.AF_UNIX)
        try:
            s.bind(str(path))
            path.chmod(0o600)
            s.listen(8)
        except OSError as e:
            s.close()
            raise MachineError(f"no control socket {path}: {e}", "set XDG_RUNTIME_DIR to a short, writable folder") from None
        return s
    finally:
        os.close(fd)


def _alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(1.0)
        try:
            s.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return False
        except OSError:         # it listens, but its queue is full: somebody is there
            return True
        return True


def _line(s: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < LINE_BYTES_MAX:
        more = s.recv(65536)
        if not more:
            break
        data += more
    return bytes(data)
