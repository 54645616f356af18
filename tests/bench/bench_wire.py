"""What a channel costs: round trip of a record that the peer copies out and answers, and bandwidth, by transport and cipher.

    python tests/bench/bench_wire.py [--json] [--quick]

`package` is TCP where no libcrypto can be loaded: the `cryptography` package seals each record, with the GIL.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from nfckpt.native import aead
from nfckpt.testbed.round_trip import ChannelPair

SIZES = (64, 512, 4096, 32768, 262144)


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """{transport: {"rtt_us_min_64": …, "rtt_us_p50_64": …, …, "mb_per_s": …}}."""
    kinds = {"shm": None, "tcp": aead.make, "package": aead.PackageAead}
    out: dict[str, dict[str, float]] = {}
    best = aead.make
    for name, cipher in kinds.items():
        aead.make = cipher or best      # this end's; the child's own is the best there is, the bytes are the same
        try:
            with ChannelPair("shm" if name == "shm" else "tcp") as pair:
                row = out[name] = {}
                pair.round_trips(64, rounds)
                for n in SIZES:
                    ns = pair.round_trips(n, max(20, min(rounds, rounds * 4096 // n)))
                    row[f"rtt_us_min_{n}"] = float(ns.min()) / 1000
                    row[f"rtt_us_p50_{n}"] = float(np.median(ns)) / 1000
                row["mb_per_s"] = max(pair.bytes_per_s(1 << 20, max(20, rounds // 10)) for _ in range(3)) / 1e6
        finally:
            aead.make = best
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    rows = measure(200 if args.quick else 5000)
    if args.json:
        print(json.dumps({"cipher": aead.IN_USE, "rows": rows}, indent=2))
        return
    print(f"cipher: {aead.IN_USE}\nround trip, us: min / median; bandwidth of 1 MiB messages")
    print(f"{'':8}" + "".join(f"{n:>18}" for n in SIZES) + f"{'MB/s':>10}")
    for name, row in rows.items():
        print(f"{name:8}" + "".join(f"{row[f'rtt_us_min_{n}']:>9.1f} /{row[f'rtt_us_p50_{n}']:>7.1f}" for n in SIZES)
              + f"{row['mb_per_s']:>10.0f}")


if __name__ == "__main__":
    main()
