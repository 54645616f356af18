"""The packet process: one loop on one thread, the shell around the sans-I/O cores. It performs their effects.

Picture     keeper ──spec──► Node.run()
                               register with the witness (through the keeper)
                               ├─ lead    ► _lead(): agent + app loop, `_hook` at every poll
                               └─ follow  ► _follow(): tap, channel, standby core ──promoted──► _lead()

A process lives one life: when it is fenced, refused or broken it ends, and its keeper starts a fresh, blank one.
Exit codes tell the keeper why (EXIT).

Files       process.py  start, register, status, end       follow.py  the standby's loop      lead.py  the active's loop
            suspects.py the careful part of a replay             parts.py  what an active needs, made beforehand
            shell.py    keeper, channel, effects, idling   app.py     the app and its context
"""

from __future__ import annotations

from nfckpt.node.app import declare, load_app
from nfckpt.node.process import Node, main
from nfckpt.node.shell import EXIT

__all__ = ["EXIT", "Node", "declare", "load_app", "main"]
