"""Testbed: a client, two nodes and a server on two hubs, inside one box, with traffic that checks itself.

    client ── hub_lan ──┬── a ──┬── hub_wan ── server        box.py        everything vanishes with its owner
                        └── b ──┘                            topology.py   the namespaces and cables
                          a═rep═b                            traffic/      the workload and its referee

And without namespaces: bench.py, an app as a pair over memory ports, for its author's tests.
"""
