"""Step 12, after the pause: prove the new direction once more, then take the old one away."""

from cutover import faults
from cutover.control import switches
from cutover.errors import Refused
from cutover.flags import store as flags
from cutover.postgres.databases import direction_from, other
from cutover.switch.environment import SwitchEnvironment
from cutover.switch.models import SwitchRequest

_PROOF_SECONDS = 30.0


async def finish(env: SwitchEnvironment, request: SwitchRequest) -> None:
    """Drops the old stream once the new one is proved.

    Raises Refused when the service is not writable at the side that the request names: then the old
    stream is still the one that counts.
    """
    route = await flags.get(env.control, request.migration, request.service)
    if route.primary_side != request.to_side:
        raise Refused(f"{request.service} is writable at the {route.primary_side}; its stream is not dropped")
    stream = env.stream(direction_from(request.to_side))
    async with faults.step("finish.prove"):
        await stream.await_marker(await stream.put_marker(), _PROOF_SECONDS)
    old = direction_from(other(request.to_side))
    await _require_route(env, request, route.epoch)
    async with faults.step("finish.changed"):
        await env.changed(old).drop()
    await _require_route(env, request, route.epoch)
    async with faults.step("finish.stream"):
        await env.stream(old).drop()


async def _require_route(env: SwitchEnvironment, request: SwitchRequest, epoch: int) -> None:
    """Looked at again before each deed: an attempt that slept meets a stream that a way back has made since."""
    now = await flags.get(env.control, request.migration, request.service)
    begun = await switches.under_way(env.control, request.migration, request.service)
    if (now.primary_side, now.epoch) != (request.to_side, epoch) or begun:
        raise Refused(f"{request.service}: another switch has begun; its streams are left alone")
