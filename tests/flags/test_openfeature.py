"""The OpenFeature provider in the real SDK: values, errors, states and events."""

import asyncio
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode, ProviderFatalError, ProviderNotReadyError
from openfeature.flag_evaluation import Reason
from openfeature.provider import ProviderStatus

from cutover.control.database import Control
from cutover.flags import store
from cutover.flags.openfeature import CutoverProvider
from cutover.postgres.databases import Database
from tests.dualwrite.waiting import until
from tests.relay import Relay

M, S = "ai-trader", "trading_engine"


class Events:
    """What the SDK told its handlers, which run in threads of their own."""

    def __init__(self, client: OpenFeatureClient) -> None:
        self.seen: list[tuple[ProviderEvent, EventDetails]] = []
        for event in ProviderEvent:
            client.add_handler(event, lambda details, event=event: self.seen.append((event, details)))  # type: ignore[misc]

    def changed(self) -> list[list[str] | None]:
        event = ProviderEvent.PROVIDER_CONFIGURATION_CHANGED
        return [details.flags_changed for kind, details in self.seen if kind == event]

    def told(self, event: ProviderEvent) -> bool:
        return any(kind == event for kind, _ in self.seen)


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_sdk() -> Iterator[None]:
    yield
    api.shutdown()
    api.clear_providers()
    assert not [thread for thread in threading.enumerate() if thread.name == "cutover-flags"]


async def opened(database: Database, timeout: float = 10.0) -> OpenFeatureClient:
    domain = uuid.uuid4().hex
    provider = CutoverProvider(M, database, timeout=timeout)
    await asyncio.to_thread(api.set_provider_and_wait, provider, domain)
    return api.get_client(domain)


async def test_the_flags_of_a_service_are_resolved_with_their_metadata(control: Control, control_db: Database) -> None:
    await store.ensure(control, M, S)
    route = await store.set_percentage(control, M, S, 30, actor="alice")
    client = await opened(control_db)
    assert client.get_provider_status() == ProviderStatus.READY
    assert client.get_boolean_value(f"{S}_read_from_new", True) is False
    assert await client.get_boolean_value_async(f"{S}_write_to_new_primary", True) is False
    share = await client.get_integer_details_async(f"{S}_percentage", 0)
    assert (share.value, share.reason, share.variant, share.error_code) == (30, Reason.STATIC, "30", None)
    assert share.flag_metadata == {"service": S, "epoch": 0, "revision": route.revision}
    assert client.get_boolean_details(f"{S}_read_from_new", True).variant == "off"


async def test_unknown_flags_and_wrong_types_give_the_default_and_the_sdks_error_codes(
    control: Control, control_db: Database
) -> None:
    await store.ensure(control, M, S)
    client = await opened(control_db)
    unknown = client.get_boolean_details("billing_read_from_new", True)
    assert (unknown.value, unknown.error_code, unknown.reason) == (True, ErrorCode.FLAG_NOT_FOUND, Reason.ERROR)
    assert client.get_string_details("nothing", "x").error_code == ErrorCode.FLAG_NOT_FOUND
    wrong = [
        client.get_boolean_details(f"{S}_percentage", True),
        client.get_integer_details(f"{S}_read_from_new", 7),
        client.get_float_details(f"{S}_percentage", 7.0),
        client.get_string_details(f"{S}_percentage", "7"),
        client.get_object_details(f"{S}_percentage", {"7": 7}),
    ]
    assert [details.error_code for details in wrong] == [ErrorCode.TYPE_MISMATCH] * 5
    assert [details.value for details in wrong] == [True, 7, 7.0, "7", {"7": 7}]


async def test_a_change_is_told_with_the_names_of_the_flags_that_changed(
    control: Control, control_db: Database
) -> None:
    client = await opened(control_db)
    events = Events(client)
    assert client.get_integer_details(f"{S}_percentage", 7).error_code == ErrorCode.FLAG_NOT_FOUND
    await store.ensure(control, M, S)
    await until(lambda: len(events.changed()) == 1)
    await store.set_percentage(control, M, S, 30, actor="alice")
    await until(lambda: len(events.changed()) == 2)
    assert client.get_integer_value(f"{S}_percentage", 7) == 30
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    await until(lambda: len(events.changed()) == 3)
    assert client.get_boolean_value(f"{S}_write_to_new_primary", False) is True
    names = sorted(f"{S}_{name}" for name in ("percentage", "read_from_new", "write_to_new_primary"))
    assert events.changed() == [names, [f"{S}_percentage"], names]


async def test_flags_removed_by_cleanup_keep_their_last_value(control: Control, control_db: Database) -> None:
    """A service that still asks must not be sent back to tables that are gone."""
    await store.ensure(control, M, S)
    await store.flip(control, M, S, primary_side="service", epoch=1, actor="switch", pause_id=None)
    await store.drop(control, M, S, actor="cleanup")
    client = await opened(control_db)
    assert client.get_boolean_value(f"{S}_read_from_new", False) is True


async def test_polling_finds_what_no_notification_told(control: Control, control_db: Database) -> None:
    await store.ensure(control, M, S)
    client = await opened(control_db)
    # once this is seen the listening has begun, which would be a look of its own
    await store.set_percentage(control, M, S, 20, actor="alice")
    await until(lambda: client.get_integer_value(f"{S}_percentage", 7) == 20)
    await control.execute("ALTER TABLE control.route DISABLE TRIGGER route_changes")
    await control.execute("UPDATE control.route SET percentage = 40")
    await until(lambda: client.get_integer_value(f"{S}_percentage", 7) == 40)


async def test_without_the_control_database_the_last_values_stay_and_are_called_stale(
    control: Control, control_db: Database
) -> None:
    await store.ensure(control, M, S)
    await store.set_percentage(control, M, S, 30, actor="alice")
    async with Relay(control_db) as relay:
        client = await opened(relay.database)
        events = Events(client)
        await relay.cut()
        await until(lambda: client.get_provider_status() == ProviderStatus.STALE)
        await until(lambda: events.told(ProviderEvent.PROVIDER_STALE))
        last = client.get_integer_details(f"{S}_percentage", 7)
        assert (last.value, last.reason, last.error_code) == (30, Reason.STALE, None)
        await store.set_percentage(control, M, S, 50, actor="alice")
        await relay.mend()
        await until(lambda: client.get_provider_status() == ProviderStatus.READY)
        await until(lambda: client.get_integer_value(f"{S}_percentage", 7) == 50)
        assert client.get_integer_details(f"{S}_percentage", 7).reason == Reason.STATIC
        await asyncio.to_thread(api.shutdown)


async def test_a_start_without_the_control_database_is_an_error_until_it_answers(
    control: Control, control_db: Database
) -> None:
    await store.ensure(control, M, S)
    async with Relay(control_db) as relay:
        await relay.cut()
        provider, domain = CutoverProvider(M, relay.database, timeout=0.2), uuid.uuid4().hex
        with pytest.raises(ProviderNotReadyError):
            await asyncio.to_thread(api.set_provider_and_wait, provider, domain)
        client = api.get_client(domain)
        assert client.get_provider_status() == ProviderStatus.ERROR
        early = client.get_boolean_details(f"{S}_read_from_new", True)
        assert (early.value, early.error_code) == (True, ErrorCode.PROVIDER_NOT_READY)
        await relay.mend()
        await until(lambda: client.get_provider_status() == ProviderStatus.READY)
        assert client.get_boolean_value(f"{S}_read_from_new", True) is False
        await asyncio.to_thread(api.shutdown)


async def test_a_dsn_that_cannot_be_read_is_fatal_and_not_shown(control_db: Database) -> None:
    wrong = replace(control_db, dsn="postgresql://app:hunter2/rest@127.0.0.1:5432/shop")
    with pytest.raises(ProviderFatalError) as caught:
        await opened(wrong)
    assert "CUTOVER_DSN_CONTROL" in str(caught.value.error_message)
    assert "hunter2" not in str(caught.value.error_message)


async def test_a_provider_that_was_shut_down_can_be_started_again(control: Control, control_db: Database) -> None:
    await store.ensure(control, M, S)
    provider = CutoverProvider(M, control_db.dsn)
    for _ in range(2):
        domain = uuid.uuid4().hex
        await asyncio.to_thread(api.set_provider_and_wait, provider, domain)
        assert api.get_client(domain).get_boolean_value(f"{S}_read_from_new", True) is False
        await asyncio.to_thread(api.shutdown)
        api.clear_providers()
