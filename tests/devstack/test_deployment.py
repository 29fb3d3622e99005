"""docker-compose.yml, Dockerfile and lock files, as far as they can be checked without docker."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from cutover.devstack.cluster import REPLICATION_SETTINGS
from cutover.devstack.stack import SERVICE_DATABASES
from cutover.settings import CONTROL

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    return loaded


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_the_compose_file_follows_the_compose_specification() -> None:
    checked = subprocess.run(
        [
            Path(sys.executable).with_name("check-jsonschema"),
            "--builtin-schema",
            "vendor.compose-spec",
            ROOT / "docker-compose.yml",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("server", ["monolith", "services", "control"])
def test_the_servers_have_the_settings_that_the_tests_run_with(compose: dict[str, Any], server: str) -> None:
    command = compose["services"][server]["command"]
    settings = dict(
        value.split("=", 1) for flag, value in zip(command[1::2], command[2::2], strict=True) if flag == "-c"
    )
    assert {name: settings.get(name) for name in REPLICATION_SETTINGS} == REPLICATION_SETTINGS


def test_every_image_is_pinned_and_every_port_is_on_loopback(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert re.fullmatch(r"\S+:(\d+\.\d+(\.\d+)?|local)", service["image"]), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_what_a_service_waits_for_exists_and_can_say_that_it_is_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for needed, rule in service.get("depends_on", {}).items():
            if rule["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]
            else:
                assert services[needed]["restart"].startswith("on-failure")


def test_the_prepared_secrets_are_private_and_name_every_database(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "prepare").write_bytes((ROOT / "deploy/prepare").read_bytes())
    for _ in range(2):
        subprocess.run(["bash", tmp_path / "prepare"], check=True, capture_output=True)
    written = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "secrets").iterdir())
    for database in (*SERVICE_DATABASES, "monolith", CONTROL):
        assert f"CUTOVER_DSN_{database.upper()}=postgresql://postgres:" in written["cutover.env"]
    for database in set(SERVICE_DATABASES) - {CONTROL}:
        assert f"CREATE DATABASE {database};" in (ROOT / "deploy/postgres/services.sql").read_text()


def test_the_runtime_lock_is_a_part_of_the_development_lock() -> None:
    runtime, development = locked("runtime.txt"), locked("dev.txt")
    assert runtime.items() <= development.items()
    assert "pytest" not in runtime
    assert "://" not in (ROOT / "requirements/runtime.txt").read_text() + (ROOT / "requirements/dev.txt").read_text()
