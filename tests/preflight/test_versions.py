"""What preflight says of each major version: possible is all from 14 on, and what is otherwise with an older one.

An ordinary run looks at one older version, CUTOVER_PROVE_VERSIONS=all at every one (`make test-versions`).
"""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from cutover.devstack.cluster import Cluster
from cutover.plan.load import load_text
from cutover.postgres.databases import Database
from cutover.preflight import servers as checks
from cutover.preflight.findings import Findings
from cutover.preflight.subject import open_subject
from tests.preflight.test_preflight import blocking, look
from tests.servers import create_database, drop_database
from tests.versions import USUAL, VERSIONS, run_cluster

OLDER = [major for major in VERSIONS if major != USUAL] if os.environ.get("CUTOVER_PROVE_VERSIONS") == "all" else [15]


def plan(stream: str) -> str:
    return f"""
migration: test
monolith: {{database: mono}}
services:
  trading:
    database: trading_db
    stream: {stream}
    tables: {{users: {{}}, trades: {{}}}}
"""


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with run_cluster("services", request.param) as started:
        yield started


@pytest_asyncio.fixture
async def old_db(older: Cluster) -> AsyncIterator[Database]:
    made = await create_database(older, "trading_db")
    yield made
    await drop_database(older, made)


@pytest.mark.parametrize("stream", ["logical", "outbox"])
async def test_an_older_server_is_not_refused_and_what_is_otherwise_is_said(
    monolith_db: Database, old_db: Database, stream: str, request: pytest.FixtureRequest
) -> None:
    major = request.node.callspec.params["older"]
    found = await look(lambda name: monolith_db if name == "mono" else old_db, of=load_text(plan(stream)))
    assert blocking(found) == []
    logical = stream == "logical"
    assert ("version_takes_turns" in found) is (logical and major < 16)
    assert ("version_counts_no_errors" in found) is (logical and major < 15)
    if logical and major < 16:
        [finding] = found["version_takes_turns"]
        assert f"PostgreSQL {major}." in finding.what


async def test_a_server_below_the_oldest_is_refused(monolith_db: Database, service_db: Database) -> None:
    """No server that old is to be had, so one says that it is."""
    findings = Findings()
    async with open_subject(
        load_text(plan("outbox")), lambda name: monolith_db if name == "mono" else service_db, findings
    ) as subject:
        assert subject.monolith is not None
        old = replace(subject.monolith, facts=replace(subject.monolith.facts, version=130023, version_text="13.23"))
        await checks.check_servers(replace(subject, monolith=old), findings, None)
    assert ["13.23 is older than 14" in f.what for f in findings.sorted() if f.code == "version"] == [True]
