"""What activities work with, opened once by the worker: settings, control database, Temporal client."""

from dataclasses import dataclass, field
from pathlib import Path

from temporalio.client import Client

from activities.models import Ref
from cutover.alerts.webhook import Webhook
from cutover.control import plans
from cutover.control.database import Control
from cutover.devstack.binaries import client_programs
from cutover.errors import Refused
from cutover.flags import store as flags
from cutover.pairs import pair
from cutover.plan.models import Plan
from cutover.postgres import catalog
from cutover.postgres.databases import Direction, Pair, Side, direction_from
from cutover.settings import Settings
from cutover.streams import open_stream
from cutover.streams.base import Stream


@dataclass
class Context:
    """Shared by all activity classes of a worker."""

    settings: Settings
    control: Control
    client: Client | None = None
    webhook: Webhook | None = None
    _plans: dict[tuple[str, str], Plan] = field(default_factory=dict)

    @property
    def client_programs(self) -> Path | None:
        """The folder of pg_dump and pg_restore; None: the PATH."""
        return client_programs(self.settings)

    async def plan(self, ref: Ref) -> Plan:
        """The plan the run is bound to; plans never change under their hash, so they are kept."""
        key = (ref.migration, ref.plan_hash)
        if key not in self._plans:
            loaded = await plans.load(self.control, ref.migration, ref.plan_hash or None)
            if not ref.plan_hash:
                return loaded
            self._plans[key] = loaded
        return self._plans[key]

    async def monolith_name(self, plan: Plan) -> str:
        """The plan's monolith by its server and database, whatever its DSN says."""
        async with self.settings.database(plan.monolith.database).session("cutover-preparation") as connection:
            facts = await catalog.server_facts(connection)
            name = await connection.fetchval("SELECT current_database()")
        return f"{facts.system_identifier}/{name}"

    async def require_in_force(self, ref: Ref) -> None:
        """Raises PlanReplaced where a person has adopted another plan: the run takes that one over first."""
        await plans.require(self.control, ref.migration, ref.plan_hash)

    def service(self, ref: Ref) -> str:
        if not ref.service:
            raise Refused("this step is about one service; none was named")
        return ref.service

    async def pair(self, ref: Ref) -> Pair:
        """The service's two databases."""
        return pair(await self.plan(ref), self.service(ref), self.settings.database)

    async def primary(self, ref: Ref) -> Side:
        """The writable side of now."""
        return (await flags.get(self.control, ref.migration, self.service(ref))).primary_side

    async def direction(self, ref: Ref) -> Direction:
        """The direction in which rows flow now."""
        return direction_from(await self.primary(ref))

    async def stream(self, ref: Ref, direction: Direction) -> Stream:
        """The service's stream of one direction."""
        plan = await self.plan(ref)
        return open_stream(await self.pair(ref), direction, plan.service(self.service(ref)))
