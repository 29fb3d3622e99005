"""Whether both servers are still the ones that the evidence came from (design 5.6, "Failover").

A promoted standby, or a restored backup, has another timeline or system identifier. Then what was measured is void,
and the last commits may be missing: the fence of the side that is not the primary among them. So that fence is put
back at once, and nothing is switched until a person has looked and accepted the server.
"""

from cutover.control import identity, switches
from cutover.errors import GateClosed, Refused
from cutover.flags import store as flags
from cutover.postgres import catalog
from cutover.postgres.databases import SIDES, Side, direction_from, other
from cutover.streams.outbox import OutboxStream
from cutover.switch.attempt import between_switches
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.recovery import set_fence


async def changed(env: SwitchEnvironment) -> list[str]:
    """What is another server or timeline than the one noted, a sentence each; the fence is put back then."""
    problems = [problem for side in SIDES if (problem := await _look(env, side))]
    if problems and await _put_back(env):
        problems.append(f"{env.pair.service}: the fence of the side that is not the primary was put back")
    return problems


async def strange(env: SwitchEnvironment) -> list[str]:
    """The same, only looked at: nothing is noted and no fence is put back. A server that was never seen is not told."""
    known = await identity.noted_of(env.control, env.pair)
    problems = [identity.unlike(env.pair, side, known[side], await _identity(env, side)) for side in known]
    return [problem for problem in problems if problem]


async def require_known(env: SwitchEnvironment) -> None:
    """Raises GateClosed where `changed` finds something."""
    if problems := await changed(env):
        raise GateClosed("; ".join(problems))


async def accept(env: SwitchEnvironment, by: str, reason: str) -> list[str]:
    """A person has looked: the servers of now are the right ones. Returns the databases that were noted anew.

    Reports and changed keys from before prove nothing any more: every table needs a full pass. The versions of an
    outbox are raised first; given again, the command does that again.
    """
    await _raise_versions(env)
    accepted: list[str] = []
    for side in SIDES:
        database = env.pair.at(side)
        now = await _identity(env, side)
        touched = list(env.plan.services) if side == "monolith" else [env.pair.service]
        if await identity.accept(
            env.control, env.pair.migration, touched, database.name, *now, by=by, reason=reason
        ):  # fmt: skip
            accepted.append(database.name)
    return accepted


async def _raise_versions(env: SwitchEnvironment) -> None:
    """A primary that has lost its last commits draws versions again that the other side knows."""
    primary = (await flags.get(env.control, env.pair.migration, env.pair.service)).primary_side
    stream = env.stream(direction_from(primary))
    if isinstance(stream, OutboxStream) and await stream.exists() and not (await stream.health()).lost:
        await stream.draw_above()


async def _identity(env: SwitchEnvironment, side: Side) -> identity.Identity:
    async with env.pair.at(side).session("cutover-gate") as connection:
        return await catalog.server_identity(connection)


async def _look(env: SwitchEnvironment, side: Side) -> str:
    """What is wrong with that side's server, or "". The first sight of a server is noted."""
    name = env.pair.at(side).name
    now = await _identity(env, side)
    noted = await switches.note_identity(env.control, env.pair.migration, name, *now)
    return identity.unlike(env.pair, side, noted, now)


async def _put_back(env: SwitchEnvironment) -> bool:
    """Closes the side that is not the primary, unless a switch is under way or came in between, which did so itself."""
    primary = (await flags.get(env.control, env.pair.migration, env.pair.service)).primary_side
    try:
        async with between_switches(env, primary) as attempt:
            # read again under the token: writes may have gone there and back
            number = (await flags.get(env.control, env.pair.migration, env.pair.service)).epoch
            return await set_fence(env, attempt, other(primary), closed=True, primary=primary, number=number)
    except Refused:
        return False
