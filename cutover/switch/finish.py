"""Step 12, after the pause: prove the new direction once more, then take the old one away."""

from cutover import faults
from cutover.control import switches
from cutover.errors import NotYet, Refused
from cutover.flags import store as flags
from cutover.postgres.databases import direction_from, other
from cutover.switch.attempt import between_switches
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchRequest

_PROOF_SECONDS = 30.0


async def finish(env: SwitchEnvironment, request: SwitchRequest) -> None:
    """Drops the old stream once the new one is proved.

    Raises Refused when the service is not writable at the side that the request names: then the old
    stream is still the one that counts. NotYet where another attempt took over.
    """
    before = await switches.find(env.control, request.migration, request.service)
    route = await flags.get(env.control, request.migration, request.service)
    if route.primary_side != request.to_side:
        raise Refused(f"{request.service} is writable at the {route.primary_side}; its stream is not dropped")
    stream = env.stream(direction_from(request.to_side))
    async with faults.step("finish.prove"):
        await stream.await_marker(await stream.put_marker(), _PROOF_SECONDS)
    old = direction_from(other(request.to_side))
    # whoever sleeps here must not drop what the next switch has made: another attempt has done it all before that
    async with between_switches(env, request.to_side) as attempt:
        if before is not None and attempt.row.token != before.token + 1:
            raise NotYet(f"{request.service}: another attempt came in between, and may have dropped the old stream")
        async with faults.step("finish.changed"):
            await env.changed(old).drop(attempt.at_leisure, attempt.row)
        async with faults.step("finish.stream"):
            await env.stream(old).drop(attempt.at_leisure)
