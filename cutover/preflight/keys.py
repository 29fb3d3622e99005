"""Foreign keys and sequences that tie services together."""

from cutover.errors import ConfigError
from cutover.postgres import catalog, foreign_keys, loose_keys
from cutover.postgres.suggestions import did_you_mean
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

_INSTALLED = "SELECT to_regclass('cutover.epoch') IS NOT NULL"


async def check_keys(subject: Subject, findings: Findings) -> None:
    """Keys that cross services against the plan's rules; sequences that are shared, unreadable or nearly used up."""
    if subject.monolith is None:
        return
    started = bool(await subject.monolith.connection.fetchval(_INSTALLED))
    for service in subject.plan.services:
        await _foreign_keys(subject, subject.monolith, service, started, findings)
        await _sequences(subject, subject.monolith, service, findings)


async def _foreign_keys(subject: Subject, monolith: Opened, service: str, started: bool, findings: Findings) -> None:
    owners = subject.owners()
    rules = subject.plan.services[service].foreign_keys
    crossing = [c.key for c in await foreign_keys.crossing(monolith.connection, subject.names(service))]
    names = {key.name for key in crossing}
    for name in sorted(set(rules) - names):
        inside = any(key.name == name for key in await catalog.foreign_keys(monolith.connection))
        where = f"plan: services.{service}.foreign_keys.{name}"
        if inside:
            findings.blocking(
                "foreign_key_inside", where, "this key neither leaves nor enters the service",
                "it stays a real key at the service", "take the rule out of the plan",
            )  # fmt: skip
        elif started:
            findings.advice(
                "foreign_key_gone", where, "the monolith has no such key (any more)",
                "a switch takes crossing keys away and keeps their definition", "nothing, if a switch took it",
            )  # fmt: skip
        else:
            findings.blocking(
                "foreign_key_unknown", where, "the monolith has no such key that leaves or enters the service",
                "a mistyped rule would let the key be dropped instead",
                did_you_mean(name, names) or f"crossing keys: {', '.join(sorted(names)) or 'none'}",
            )  # fmt: skip
    for key in crossing:
        rule = subject.plan.foreign_key_rule(key.name, owners.get(key.table, ""), owners.get(key.references))
        where = f"{monolith.name}: foreign key {key.name} of {key.table}"
        holder = owners.get(key.table) or owners[key.references]  # the same words from either end's service
        what = f"{key.table} → {key.references} crosses services; its rule is `{rule}`"
        if rule == "loose":
            try:
                loose_keys.check_can_be_loose(key)
            except ConfigError as e:
                findings.blocking("foreign_key_not_loose", where, str(e), "nobody would keep the rule",
                                  "change the key's ON DELETE, or the plan's rule")  # fmt: skip
                continue
            findings.advice(
                "foreign_key_loose", where, what,
                "a deleted parent's children follow later; meanwhile they are orphans",
                "let readers bear with a parent that is gone",
            )  # fmt: skip
        else:
            findings.advice(
                "foreign_key_dropped", where, what,
                f"after the switch nobody checks it, and ON DELETE {key.on_delete.upper()} does not happen any more",
                f"let the application do it, or set services.{holder}.foreign_keys.{key.name}: loose "
                "(for CASCADE and SET NULL)",
            )  # fmt: skip
        if not key.validated:
            findings.advice(
                "foreign_key_not_valid", where, "it was never validated",
                "there may be rows already that refer to nothing", "ALTER TABLE … VALIDATE CONSTRAINT …",
            )  # fmt: skip


async def _sequences(subject: Subject, monolith: Opened, service: str, findings: Findings) -> None:
    owners = subject.owners()
    margin = subject.plan.switchover.sequence_margin
    for s in await catalog.sequences_of(monolith.connection, subject.infos(service)):
        where = f"{monolith.name}: sequence {s.name}"
        outside = [str(t) for t in s.shared if owners.get(t) != service]
        if outside:
            findings.advice(
                "shared_sequence", where, f"{s.table} ({service}) shares it with {', '.join(outside)}",
                "after the cut each database counts on by itself: numbers are unique in each, not over both",
                "give each table a sequence of its own, or leave a gap that is wide enough",
            )  # fmt: skip
        if s.last_value is None:
            findings.blocking(
                "sequence_unreadable", where, "cutover's role may not read it",
                "the other side's sequence could not be raised past it",
                f"GRANT SELECT, UPDATE ON SEQUENCE {s.name.sql} TO …",
            )  # fmt: skip
        elif s.cycle:
            findings.advice(
                "cycled_sequence", where, "it cycles",
                "its numbers come again, so its position is copied without a margin",
                "see that nothing takes its numbers for unique",
            )  # fmt: skip
        else:
            end = s.last_value + s.increment * margin * 4
            if end > s.max or end < s.min:
                findings.blocking(
                    "sequence_bound", where,
                    f"it stands at {s.last_value}; some switches with a margin of {margin} would pass its bound",
                    "a switch would stop before it can raise the sequence",
                    "ALTER the column and the sequence to bigint, or lower switchover.sequence_margin",
                )  # fmt: skip
