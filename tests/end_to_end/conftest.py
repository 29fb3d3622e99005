"""A stack of its own for each end-to-end test: Temporal and two PostgreSQL servers, deleted afterwards."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutover.devstack.cluster import free_port, port_in_use
from examples.ai_trader.demo_fleet import Fleet, end_leftovers
from examples.ai_trader.demo_ground import Ground

PORTS = 4


def four_ports() -> int:
    """The first of four free ports in a row."""
    while True:
        base = free_port()
        if base + PORTS < 65535 and not any(port_in_use(base + number) for number in range(PORTS)):
            return base


@pytest.fixture
def ground() -> Iterator[Ground]:
    """A running, empty stack."""
    with tempfile.TemporaryDirectory(prefix="cutover-end-to-end-") as folder:
        made = Ground.at(Path(folder) / "home", four_ports())
        stack = made.stack(lambda text: None)
        stack.up()
        try:
            yield made
        finally:
            stack.reset()


@pytest.fixture
def fleet(ground: Ground) -> Iterator[Fleet]:
    """Processes in those surroundings; what is left at the end is ended."""
    started = Fleet(ground.folder, ground.environ)
    try:
        yield started
    finally:
        started.stop_now()
        end_leftovers(ground.folder)
