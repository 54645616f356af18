"""Fuzz for a while: see tests/fuzz/__init__.py. Exit code 1 when something was found; the input is kept in the corpus then."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzz import NAMES

GUIDED_BY = ["nfckpt.config", "nfckpt.wire.messages", "nfckpt.wire.tcp", "nfckpt.ports.pcap", "tests.headers_twin", "tomllib", "tomllib._parser"]


def guided(target: str, seconds: int) -> int:
    """With atheris, in this process, which it ends."""
    import atheris
    with atheris.instrument_imports(include=GUIDED_BY):
        from tests.fuzz.targets import CORPUS, TARGETS
    found = Path(".fuzz", target)
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], str(found), str(CORPUS / target), f"-max_total_time={seconds}", "-timeout=5", "-verbosity=0",
                   f"-artifact_prefix={CORPUS / target}/"], TARGETS[target])
    atheris.Fuzz()
    return 0


def unguided(target: str, seconds: int, seed: int) -> int:
    from tests.fuzz.targets import CORPUS, TARGETS, kept, mutate
    rng, corpus, n = random.Random(seed), kept(target), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = mutate(rng, corpus)
        n += 1
        try:
            TARGETS[target](data)
        except Exception:
            traceback.print_exc()
            path = CORPUS / target / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{target}: found {path}", file=sys.stderr)
            return 1
    print(f"{target}: {n:,} inputs, nothing found")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes from outside.")
    parser.add_argument("target", nargs="?", choices=[*NAMES, "all"], default="all")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="without atheris: the same seed does the same")
    parser.add_argument("--unguided", action="store_true", help="without atheris, though it is there")
    parser.add_argument("--write-seeds", action="store_true", help="begin the corpus anew")
    asked = parser.parse_args()
    if asked.write_seeds:
        from tests.fuzz.targets import CORPUS, seeds
        for target, named in seeds().items():
            (CORPUS / target).mkdir(parents=True, exist_ok=True)
            for name, data in named.items():
                (CORPUS / target / name).write_bytes(data)
        return 0
    atheris = importlib.util.find_spec("atheris") is not None and not asked.unguided
    if asked.target == "all":
        options = ["--seconds", str(asked.seconds), "--seed", str(asked.seed), *(["--unguided"] if asked.unguided else [])]
        return max(subprocess.run([sys.executable, "-m", "tests.fuzz", target, *options]).returncode != 0 for target in NAMES)
    return guided(asked.target, asked.seconds) if atheris else unguided(asked.target, asked.seconds, asked.seed)


if __name__ == "__main__":
    sys.exit(main())
