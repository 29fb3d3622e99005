"""OFREP: statuses and bodies of its specification (service/openapi.yaml of open-feature/protocol)."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from cutover.control.database import Control
from cutover.flags import store
from cutover.flags.follower import Follower
from cutover.flags.ofrep import MAX_BODY, PREFIX, application

M, S = "ai-trader", "trading_engine"


def client(follower: Follower, token: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(follower, token=token), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://flags")


@pytest_asyncio.fixture
async def follower(control: Control) -> Follower:
    await store.ensure(control, M, S)
    await store.set_percentage(control, M, S, 30, actor="alice")
    follower = Follower(control, M)
    await follower.load()
    return follower


@pytest_asyncio.fixture
async def http(follower: Follower) -> AsyncIterator[httpx.AsyncClient]:
    async with client(follower) as opened:
        yield opened


async def test_one_flag_is_answered_with_value_reason_variant_and_metadata(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{PREFIX}/{S}_percentage", json={"context": {"targetingKey": "user-1"}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "key": f"{S}_percentage",
        "value": 30,
        "reason": "STATIC",
        "variant": "30",
        "metadata": {"service": S, "epoch": 0, "revision": 2},
    }
    switch = (await http.post(f"{PREFIX}/{S}_read_from_new")).json()
    assert (switch["value"], switch["variant"]) == (False, "off")


async def test_an_unknown_flag_is_404_with_its_key(http: httpx.AsyncClient) -> None:
    answer = await http.post(f"{PREFIX}/nothing%20here", json={})
    assert answer.status_code == 404
    assert answer.json() == {
        "key": "nothing here",
        "errorCode": "FLAG_NOT_FOUND",
        "errorDetails": "ai-trader has no flag 'nothing here'",
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "PARSE_ERROR"),
        (b"\xff", "PARSE_ERROR"),
        (b"[" * 100_000, "PARSE_ERROR"),
        (b"[]", "PARSE_ERROR"),
        (b'{"context": "user-1"}', "INVALID_CONTEXT"),
    ],
)
async def test_a_body_that_is_no_evaluation_request_is_400(http: httpx.AsyncClient, body: bytes, code: str) -> None:
    one = await http.post(f"{PREFIX}/{S}_percentage", content=body)
    assert one.status_code == 400
    assert (one.json()["key"], one.json()["errorCode"]) == (f"{S}_percentage", code)
    assert one.json()["errorDetails"]
    all_of_them = await http.post(PREFIX, content=body)
    assert all_of_them.status_code == 400
    assert (all_of_them.json()["errorCode"], "key" in all_of_them.json()) == (code, False)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"context": null}', b'{"context": {"a": [1]}}'])
async def test_a_context_may_be_left_out(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await http.post(f"{PREFIX}/{S}_percentage", content=body)).status_code == 200
    assert (await http.post(PREFIX, content=body)).status_code == 200


async def test_all_flags_come_with_an_etag_that_answers_304_until_one_changes(
    http: httpx.AsyncClient, follower: Follower, control: Control
) -> None:
    first = await http.post(PREFIX, json={"context": {}})
    assert first.status_code == 200
    assert [(flag["key"], flag["value"]) for flag in first.json()["flags"]] == [
        (f"{S}_percentage", 30),
        (f"{S}_read_from_new", False),
        (f"{S}_write_to_new_primary", False),
    ]
    etag = first.headers["etag"]
    assert etag.startswith('"')
    for given in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await http.post(PREFIX, json={"context": {}}, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    await store.set_percentage(control, M, S, 50, actor="alice")
    await follower.load()
    changed = await http.post(PREFIX, json={"context": {}}, headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


async def test_stale_flags_keep_their_values_and_say_so(http: httpx.AsyncClient, follower: Follower) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ready", "migration": M, "flags": 3}
    follower.stale = True
    answer = (await http.post(f"{PREFIX}/{S}_percentage")).json()
    assert (answer["value"], answer["reason"]) == (30, "STALE")
    health = await http.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (200, "stale")


async def test_with_a_token_only_its_bearers_are_answered(follower: Follower) -> None:
    async with client(follower, token="hunter2") as http:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"X-API-Key": "wrong"},
            {"Authorization": "Basic hunter2"},
        ):
            refused = await http.post(PREFIX, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "hunter2" not in refused.text
        for headers in ({"Authorization": "Bearer hunter2"}, {"X-API-Key": "hunter2"}):
            assert (await http.post(PREFIX, headers=headers)).status_code == 200
            assert (await http.post(f"{PREFIX}/{S}_percentage", headers=headers)).status_code == 200
        assert (await http.get("/healthz")).status_code == 200


async def test_what_the_protocol_does_not_know_is_refused_as_json(http: httpx.AsyncClient) -> None:
    for answer, status in (
        (await http.get(PREFIX), 405),
        (await http.post("/ofrep/v2/evaluate/flags"), 404),
        (await http.post(PREFIX, content=b" " * (MAX_BODY + 1)), 413),
    ):
        assert answer.status_code == status
        assert answer.json()["errorDetails"]


async def test_a_mistake_of_our_own_is_500_without_its_text(
    http: httpx.AsyncClient, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "flags", {"secret": None})
    answer = await http.post(PREFIX)
    assert answer.status_code == 500
    assert answer.json() == {"errorDetails": "a mistake in cutover itself: AttributeError"}
