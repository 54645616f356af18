"""pytest plugin, loaded where nfckpt is installed: the fixture `check_nf`.

    def test_it_survives(check_nf):
        check_nf(MyApp, "traffic.pcap")                     # nfckpt.sim.check_nf.check_nf, seeded by --nf-seed

    $ pytest --nf-seed 7
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["check_nf"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("nfckpt").addoption("--nf-seed", type=int, default=0, help="seed of check_nf (default 0)")


@pytest.fixture
def check_nf(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """check_nf(app, traffic=None, **options): kill it after every burst, at every stage; fails with the report."""
    from nfckpt.sim import check_nf as rooms

    def check(app: Any, traffic: Any = None, **options: Any) -> rooms.Report:
        __tracebackhide__ = True
        report = rooms.examine(app, traffic, **{"seed": request.config.getoption("--nf-seed"), **options})
        if not report.ok:
            pytest.fail(report.text(), pytrace=False)
        return report
    return check
