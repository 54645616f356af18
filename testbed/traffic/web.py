"""A file over HTTP: a tiny server, and curl fetching it again and again, each copy verified by its SHA-256.

curl is somebody else's client: it knows nothing of us, and a reset or a wrong byte is its word, not ours.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import socketserver
import subprocess
import threading
import time

from nfckpt.testbed.traffic.control import Control, config, cpu_s, emit

SERVER_PORT = 9_002
FETCH_S_MAX = 30
EVERY_S = 0.5


def content(size: int) -> bytes:
    """The same file on both sides, without sending it anywhere but through the network function."""
    return random.Random(2).randbytes(size)


class Server(socketserver.ThreadingTCPServer):     # http.server.HTTPServer would look up our own name in the DNS
    allow_reuse_address = True
    daemon_threads = True


def serve(address: str, size: int) -> None:
    body = content(size)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = Server((address, SERVER_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    emit("ready")
    control = Control()
    while "report" not in control.wait(3600):
        pass
    emit("result", cpu_s=cpu_s())


def fetch(address: str, size: int) -> None:
    right = hashlib.sha256(content(size)).digest()
    count = {"fetched": 0, "failed": 0, "corrupt": 0}
    control = Control()
    emit("ready")
    going = False
    while True:
        for command in control.wait(EVERY_S):
            if command == "report":
                emit("result", **count, cpu_s=cpu_s())
                return
            going = command == "go"
            if not going:
                emit("halted", t_ns=time.monotonic_ns())
        if going:
            curl = subprocess.run(
                ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", str(FETCH_S_MAX), f"http://{address}:{SERVER_PORT}/"],
                stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if curl.returncode != 0:
                count["failed"] += 1
            elif hashlib.sha256(curl.stdout).digest() != right:
                count["corrupt"] += 1
            else:
                count["fetched"] += 1
            emit("live", **count)


def main() -> None:
    os.nice(5)      # packet loops come first
    want = config()
    (serve if want["role"] == "server" else fetch)(want["server"], want["file_bytes"])


if __name__ == "__main__":
    main()
