"""Traffic through the testbed, and its referee: UDP that is counted one by one, TCP that is checked block by block.

Each program runs inside the client's or the server's namespace and is driven by lines on its standard input
(control.py); `workload.py` starts them all, asks them all, and adds up.
"""

from nfckpt.testbed.traffic.workload import Load, Workload, problems

__all__ = ["Load", "Workload", "problems"]
