"""Which servers these are: versions, roles as standby, sameness, locale, extensions, and client programs."""

from pathlib import Path

from cutover.errors import ConfigError
from cutover.postgres import programs
from cutover.preflight.findings import Findings
from cutover.preflight.subject import Opened, Subject

OLDEST = 14
#: From here on errors of a subscription are counted.
COUNTS_ERRORS = 15
#: From here on both directions of `logical` can run at once.
BOTH_WAYS = 16

_LOCALE = """
SELECT pg_encoding_to_char(encoding) AS encoding, datcollate AS collate, datctype AS ctype,
       to_jsonb(d) ->> 'datlocprovider' AS provider, to_jsonb(d) ->> 'datcollversion' AS version, d.oid::text AS oid
FROM pg_catalog.pg_database d WHERE datname = current_database()
"""

# The extensions that the tables' column types come from.
_EXTENSIONS = """
SELECT DISTINCT e.extname::text AS name, e.extversion AS version
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.deptype = 'e'
    AND d.objid IN (t.oid, t.typelem, t.typbasetype)
JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""

_AVAILABLE = """
SELECT v.name, (SELECT extversion FROM pg_catalog.pg_extension e WHERE e.extname = v.name) AS installed,
       array_agg(v.version) AS versions
FROM pg_catalog.pg_available_extension_versions v GROUP BY v.name
"""


async def check_servers(subject: Subject, findings: Findings, bindir: Path | None) -> None:
    """Versions, standbys, two sides in one place, locale and extensions; pg_dump and pg_restore here."""
    for opened in subject.opened():
        _version(opened, findings)
    monolith = subject.monolith
    if monolith is None:
        return
    for program in ("pg_dump", "pg_restore"):
        try:
            await programs.find(program, bindir, monolith.facts.major)
        except ConfigError as e:
            findings.blocking("client_programs", "this machine", str(e), "the service's schema is made with it",
                              "install PostgreSQL's client programs of the monolith's version or newer")  # fmt: skip
    here = await monolith.connection.fetchrow(_LOCALE)
    assert here is not None
    for service, target in subject.targets.items():
        if target is None:
            continue
        if subject.plan.services[service].stream == "logical":
            _turns(service, monolith, target, findings)
        there = await target.connection.fetchrow(_LOCALE)
        assert there is not None
        where = f"{monolith.name} and {target.name}"
        if target.facts.system_identifier == monolith.facts.system_identifier:
            if here["oid"] == there["oid"]:
                findings.blocking(
                    "same_database", where, f"service {service!r} would move into the database it leaves",
                    "a table cannot be source and target at once", "correct the DSN of the service's database",
                )  # fmt: skip
                continue
            findings.advice(
                "same_server", where, "both sides are databases of one server",
                "the service gains no capacity and shares every outage", "give the service a server of its own",
            )  # fmt: skip
        if here["encoding"] != there["encoding"]:
            findings.blocking(
                "encoding", where, f"encodings differ: {here['encoding']} and {there['encoding']}",
                "text may not be storable on the other side, and its hashes differ",
                f"create the service's database with ENCODING '{here['encoding']}' TEMPLATE template0",
            )  # fmt: skip
        locale = [(here[k], there[k]) for k in ("provider", "collate", "ctype", "version") if here[k] != there[k]]
        if locale:
            findings.advice(
                "collation", where, "collations differ: " + ", ".join(f"{a} and {b}" for a, b in locale),
                "ORDER BY and unique text keys may behave differently; reconciliation itself sorts by bytes",
                "create the service's database with the monolith's locale, on the same library version",
            )  # fmt: skip
        await _extensions(subject, monolith, service, target, findings)


def _version(opened: Opened, findings: Findings) -> None:
    if opened.facts.in_recovery:
        findings.blocking(
            "standby", opened.name, "the server is a standby",
            "it cannot be written to, and neither be the source nor the target of a migration",
            "let the DSN name the primary",
        )  # fmt: skip
    if opened.facts.major < OLDEST:
        findings.blocking(
            "version", opened.name, f"PostgreSQL {opened.facts.version_text} is older than {OLDEST}",
            "the triggers, locks and streams used here are not there", f"upgrade to {BOTH_WAYS} or newer",
        )  # fmt: skip


def _turns(service: str, monolith: Opened, target: Opened, findings: Findings) -> None:
    """What is otherwise with `logical` where one of the two servers is older."""
    old = {o.name: o.facts.version_text for o in (monolith, target) if OLDEST <= o.facts.major < BOTH_WAYS}
    if not old:
        return
    named = ", ".join(f"PostgreSQL {version} at {name}" for name, version in old.items())
    findings.advice(
        "version_takes_turns", f"{monolith.name} and {target.name}", f"{named}; {service} uses `stream: logical`",
        f"only where both are {BOTH_WAYS} or newer can both directions run at once (origin = none). So the way back is "
        "made before the pause and begins inside it: each pause is longer by the start of a worker. Below "
        f"{BOTH_WAYS} only a superuser can make a subscription",
        f"nothing; for a shorter pause upgrade both servers to {BOTH_WAYS} or newer, or choose `stream: outbox`",
    )  # fmt: skip
    for one in (monolith, target):
        if OLDEST <= one.facts.major < COUNTS_ERRORS:
            findings.advice(
                "version_counts_no_errors", one.name,
                f"PostgreSQL {one.facts.version_text} does not count the errors of a subscription",
                "an apply worker that had to start again counts as a breach for a minute, whatever it was",
                f"nothing; from {COUNTS_ERRORS} on the errors themselves are counted",
            )  # fmt: skip


async def _extensions(subject: Subject, monolith: Opened, service: str, target: Opened, findings: Findings) -> None:
    oids = [info.oid for info in subject.infos(service)]
    wanted = await monolith.connection.fetch(_EXTENSIONS, oids)
    if not wanted:
        return
    available = {row["name"]: row for row in await target.connection.fetch(_AVAILABLE)}
    for row in wanted:
        where = f"{target.name}: extension {row['name']}"
        there = available.get(row["name"])
        if there is None:
            findings.blocking(
                "extension_missing", where, "a column's type comes from an extension that this server does not have",
                "the table cannot be created", "install the extension's package on the service's server",
            )  # fmt: skip
        elif (there["installed"] or row["version"]) != row["version"] or row["version"] not in there["versions"]:
            findings.advice(
                "extension_version", where,
                f"version {row['version']} on the monolith, {there['installed'] or 'another'} here",
                "types or functions of another version may give other results",
                f"ALTER EXTENSION … UPDATE on the side that is behind, to {row['version']}",
            )  # fmt: skip
