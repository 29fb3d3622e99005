"""Where the Temporal binary comes from, with programs that only print a version in the place of real ones."""

import os
from pathlib import Path

import pytest

from cutover.devstack import temporal
from cutover.errors import ConfigError

RELEASE = "temporal version 1.9.1 (Server 1.32.0, UI 2.54.1)"
DEVELOPMENT_BUILD = "temporal version 0.0.0-DEV (Server 1.32.0, UI 2.54.1)"
OLD = "temporal version 1.1.0 (Server 1.25.0, UI 2.30.0)"


def program(path: Path, prints: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": f"{tmp_path / 'path'}:/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def refuse(text: str) -> None:
    raise AssertionError(f"nothing is to be fetched: {text}")


@pytest.mark.parametrize("prints", [RELEASE, DEVELOPMENT_BUILD])
def test_the_named_binary_comes_first(tmp_path: Path, environ: dict[str, str], prints: str) -> None:
    named = program(tmp_path / "named", prints)
    program(tmp_path / "path" / "temporal", RELEASE)
    assert temporal.ensure({**environ, "CUTOVER_TEMPORAL_CLI": str(named)}, refuse) == named


@pytest.mark.parametrize(("prints", "says"), [(OLD, "server 1.25"), ("nonsense", "not a Temporal CLI")])
def test_a_named_binary_that_will_not_do_is_refused(
    tmp_path: Path, environ: dict[str, str], prints: str, says: str
) -> None:
    named = program(tmp_path / "named", prints)
    with pytest.raises(ConfigError, match=says):
        temporal.ensure({**environ, "CUTOVER_TEMPORAL_CLI": str(named)}, refuse)


def test_the_one_on_the_path_is_taken_if_new_enough(tmp_path: Path, environ: dict[str, str]) -> None:
    on_path = program(tmp_path / "path" / "temporal", RELEASE)
    program(temporal.cached_binary(environ), RELEASE)
    assert temporal.ensure(environ, refuse) == on_path


def test_the_cached_one_is_taken_before_an_old_one_on_the_path(tmp_path: Path, environ: dict[str, str]) -> None:
    program(tmp_path / "path" / "temporal", OLD)
    cached = program(temporal.cached_binary(environ), DEVELOPMENT_BUILD)
    assert temporal.ensure(environ, refuse) == cached


def test_the_download_is_kept_in_the_cache(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_download", lambda scratch: program(scratch / "temporal-sdk", RELEASE))
    said: list[str] = []
    binary = temporal.ensure(environ, said.append)
    assert binary == temporal.cached_binary(environ)
    assert os.access(binary, os.X_OK)
    assert "downloading" in said[0]
    assert "ready after" in said[-1]
    assert sorted(path.name for path in binary.parent.iterdir()) == [binary.name, binary.name + ".lock"]


def test_without_download_and_go_it_says_what_to_install(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "_download", lambda scratch: None)
    environ = {**environ, "PATH": str(tmp_path / "path")}
    with pytest.raises(ConfigError, match=r"no Go to build it with.*CUTOVER_TEMPORAL_CLI.*Go 1\.26\.8"):
        temporal.ensure(environ, lambda text: None)


def test_an_old_go_that_may_not_fetch_a_newer_one_is_named(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "_download", lambda scratch: None)
    program(tmp_path / "path" / "go", "go version go1.24.1 linux/amd64")
    with pytest.raises(ConfigError, match=r"Go 1\.24\.1 .* too old"):
        temporal.ensure(environ, lambda text: None)


def test_the_build_is_kept_in_the_cache(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporal, "_download", lambda scratch: None)
    go = program(tmp_path / "path" / "go", "")
    go.write_text(
        "#!/bin/sh\n"
        'if [ "$1" != build ]; then echo go version go1.27.0 linux/amd64; exit; fi\n'
        'while [ "$1" != -o ]; do shift; done\n'
        f'printf \'#!/bin/sh\\necho "{DEVELOPMENT_BUILD}"\\n\' > "$2"; chmod +x "$2"\n'
    )
    assert temporal.ensure(environ, lambda text: None) == temporal.cached_binary(environ)
