"""The process that answers Prometheus for one node: `python -m nfckpt.observe.exporter FD`. A packet process starts it (board.py).

    first line of standard input: an ExporterSpec; its end: the packet process is gone, and so are we
    GET /metrics, one at a time, each client for at most CLIENT_S_MAX; names and units: metrics.py

It reads the board and nothing else, at nice 15 and on any CPU. An address that is taken is tried for BIND_S_MAX, as long as the exporter
of the life before may need to go; then it says so on standard error and ends with code 2, which the node reports as `metrics_lost`.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import msgspec
from prometheus_client.exposition import make_wsgi_app

from nfckpt.observe.board import ExporterSpec, read
from nfckpt.observe.metrics import registry

__all__ = ["main"]

CLIENT_S_MAX = 2.0
BIND_S_MAX = 5.0
NICE = 15


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_S_MAX

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape is no event."""


class _Server(WSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was slow or went away is its own loss."""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)           # not the base's: it looks the host's name up
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


def serve(spec: ExporterSpec, fd: int) -> Callable[[], None]:
    """Listen on `spec.address`; returns what answers for ever. Raises OSError."""
    host, _, port = spec.address.rpartition(":")
    server = _Server((host.strip("[]"), int(port)), _Handler)
    server.set_app(make_wsgi_app(registry(spec, lambda: read(fd)), disable_compression=True))
    return server.serve_forever


def main() -> int:
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        print("nfckpt.observe.exporter is started by a node: set [nodes.NAME] metrics", file=sys.stderr)
        return 2
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=ExporterSpec)
    deadline = time.monotonic() + BIND_S_MAX
    while True:
        try:
            answer = serve(spec, int(sys.argv[1]))
            break
        except OSError as e:
            if time.monotonic() > deadline:
                print(f"error: node {spec.node}: no metrics on {spec.address}: {e.strerror} (another [nodes.{spec.node}] metrics)", file=sys.stderr)
                return 2
            time.sleep(0.05)
    threading.Thread(target=answer, daemon=True).start()
    sys.stdin.buffer.read()                 # until the packet process ends
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)                          # at once: a thread that answers a slow client does not keep the address
