"""The same with the standby's tap: its ports see every input and every output on the segment, in shared memory; each epoch's names
are found in what the tap buffered, its outputs are seen leaving. At the end no frame may be missing.
"""

from __future__ import annotations

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.rows.checkpoints import BARE, rates, unprotected

KEYS = ("checkpoints_tap_per_s",)


def measure(scale: Scale) -> list[Figure]:
    both, digest, settings, nbytes = rates(scale, tap=True)
    return [Figure.of(KEYS[0], both.spread(lambda a, _: a.counted_per_s), limit=both.spread(lambda _, b: b).median,
                      limit_what=BARE.format(nbytes), note=unprotected(settings), digest=digest, settings=settings)]
