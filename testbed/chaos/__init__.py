"""Chaos: a pair under exact traffic, struck again and again; a ledger that says what that did. `nfckpt chaos` runs it.

    faults.py     what can be done to a pair, and where its promise covers it     schedule.py   which, when, whom: from a seed
    injector.py   does it to the testbed                                          campaign.py   one run from start to end
    emissions.py  who emitted when, seen from the hubs                            ledger.py     what was promised, and what came of it
    report.py     the run as one HTML file                                        view.py       progress, table, exit code
"""
