"""The command line's way to Temporal and the control database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.client import Client
from temporalio.envconfig import ClientConfig

from cutover.control.database import Control
from cutover.errors import Unreachable
from cutover.settings import CONTROL, Settings
from cutover.telemetry.temporal import cutover_plugin

#: A server that is there and does not answer would be waited for three times as long.
ANSWER_SECONDS = 10.0


async def temporal(settings: Settings) -> Client:
    """A client for the server that `TEMPORAL_*` names (profile file, environment, `.cutover/env`).

    Raises Unreachable with the address.
    """
    config = ClientConfig.load_client_connect_config(override_env_vars=dict(settings.values))
    config.setdefault("target_host", settings.temporal_address)
    config.setdefault("namespace", settings.temporal_namespace)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await Client.connect(**config, plugins=[cutover_plugin()])
    except (RuntimeError, TimeoutError):
        raise Unreachable(
            f"the Temporal server at {config['target_host']} does not answer; "
            "start the development stack with `cutover dev up`, or set TEMPORAL_ADDRESS"
        ) from None


@asynccontextmanager
async def control(settings: Settings) -> AsyncIterator[Control]:
    """The control database, for one command."""
    opened = await Control.open(settings.database(CONTROL), max_size=2)
    try:
        yield opened
    finally:
        await opened.close()
