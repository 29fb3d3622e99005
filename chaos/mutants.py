"""`make chaos-mutants`: naive variants of the product, each of which a check has to catch.

    python -m chaos.mutants [NAME …]

In a copy of the source the checks have to pass first as it is; then each variant is made by a few lines of text, and
its check has to fail by what it asserts. Prints what each one said, and as the last line one JSON object. Exit status
1 where one survives. The lines are those of docs/chaos-mutants.md.
"""

import json
import sys
from dataclasses import replace

from scripts import mutants_dualwrite
from scripts.mutants import Edit, Mutant, chosen, run

_FORWARD, _STEPS = "cutover/switch/forward.py", "cutover/switch/steps.py"
_REVERSE, _RECOVERY, _FINISH = "cutover/switch/reverse.py", "cutover/switch/recovery.py", "cutover/switch/finish.py"
_EPOCH, _SWITCHES = "cutover/postgres/epoch.py", "cutover/control/switches.py"
_GATE, _LENDING, _SINK = "cutover/dualwrite/gate.py", "cutover/dualwrite/lending.py", "cutover/postgres/outbox_sink.py"

_SCENARIO = "tests/chaos/test_scenarios.py::test_"
_BACK = _SCENARIO + "writes_at_the_new_side_come_back_and_the_old_side_takes_none"
_SLOW = _SCENARIO + "a_write_before_the_fence_is_at_the_new_side_however_slow_the_stream"

_MODEL = (
    "tests/chaos/test_model.py::test_no_invariant_breaks_in_any_state[Left(writes=2, crashes=1, sleeps=0, switches=2)]"
)

_ORIGINS = "tests/streams/test_logical.py::test_both_directions_at_once_do_not_send_rows_back"

_TWO_SIDES = "the monolith took a write while both sides had to refuse"
_IN_VAIN, _LOST = "a switch was undone .*keys differ inside the fence", "acknowledged write lost"

_LOCK = "                    await connection.execute(fence.lock_within_sql(members, wait_ms))\n"
_CLOSE = "                    await fence.ensure(connection, service, [*members, *sorted(more)], closed=True)\n"
_EPOCH_ROW = "                    await epoch.set_epoch(connection, service, row.to_side, row.to_epoch)\n"
_COMPARE_OFF = Edit(_FORWARD, "        if not verdict.equal:\n", "        if False:\n")


def _step(name: str) -> str:
    return f'    Step("{name}", "section", '


_MARKER = _step("marker") + '"put a marker and await it, durable, at the other side"),\n'
_SEQUENCES = _step("sequences") + "\"raise the other side's sequences past the primary's\"),\n"
_JOURNAL = _step("journal") + '"write the journal row: the point of no return"),\n'


def _moved(line: str, before: str) -> tuple[Edit, Edit]:
    """The line of the list of steps right before the one that begins so."""
    return Edit(_STEPS, line, ""), Edit(_STEPS, before, line + before)


def _made(name: str, test: str, says: str, *edits: Edit) -> Mutant:
    first, *more = edits
    return Mutant(name, test, says, first.file, first.old, first.new, tuple(more))


def _known(name: str, proved: str) -> Mutant:
    """One that `make prove-dualwrite` has as well, under the name that it has here."""
    return replace(next(mutant for mutant in mutants_dualwrite.MUTANTS if mutant.name == proved), name=name)


_POSITION = (
    Edit(
        _FORWARD,
        "        await self.changed.require_short_tail(TAIL_LIMIT)\n",
        "        await self.changed.require_short_tail(TAIL_LIMIT)\n"
        "        source = await self.attempt.session(self._from_side)\n"
        '        position = await source.fetchval("SELECT pg_current_wal_lsn()::text")\n'
        '        sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots "\n'
        '        sql += "WHERE slot_name = $2"\n'
        '        while not await source.fetchval(sql, position, f"{self.request.service}_sub"):\n'
        "            await asyncio.sleep(0.01)\n",
    ),
    Edit(
        _FORWARD,
        "        await at_once(\n"
        "            self.stream.await_marker_on(sink, self._marker, self._remaining), "
        "self.changed.consume(None, advance=False)\n"
        "        )\n",
        "        await self.changed.consume(None, advance=False)\n",
    ),
)
_NO_WAY_BACK = (
    Edit(
        _REVERSE,
        "        await env.stream(direction_from(route.primary_side)).give_up_nothing()\n",
        "        await env.stream(direction_from(route.primary_side)).give_up_nothing()\n    return 0.0\n",
    ),
    Edit(_FORWARD, "        await self._require_way_back()\n", ""),
    Edit(
        _FORWARD,
        "        await self.env.changed(direction_from(self.request.to_side)).adopt(self.attempt.row)\n",
        "",
    ),
)
_APPLY = (
    "        newer = await _raise_versions(connection, service, ordered)\n"
    "        for name, flow in flows.items():\n"
    "            mine = [change for change in newer if change.flow == name]\n"
    "            if mine:\n"
    "                await _write(connection, flow, mine, replace=replace)\n"
)
#: The version rows are raised, and the rows written that they allow, by one statement with one snapshot.
_APPLY_AT_ONCE = """\
        newer = []
        for name, flow in flows.items():
            mine = [change for change in ordered if change.flow == name]
            for gone in (True, False):
                part = [change for change in mine if (change.image is None) == gone]
                if not part:
                    continue
                values = key_columns(flow, [c.key for c in part]) if gone else [[c.image for c in part]]
                sql = flow.delete_sql if gone else flow.upsert_sql
                rows = await connection.fetch(
                    f"WITH raised AS ({_raise_sql(part, len(values) + 1)}), written AS ({sql} RETURNING 1) "
                    "SELECT * FROM raised",
                    *values,
                    *_raise_values(service, part),
                )
                newer += rows
"""

MUTANTS: tuple[Mutant, ...] = (
    _made(
        "no fence", f"{_BACK}[logical]", _TWO_SIDES,
        Edit(_FORWARD, _LOCK, ""), Edit(_FORWARD, _CLOSE + _EPOCH_ROW, ""),
    ),
    _made("a fence by flag only", f"{_BACK}[eventual]", _TWO_SIDES, Edit(_FORWARD, _CLOSE, "")),
    _made("the marker before the drain", f"{_SLOW}[eventual]", _LOST, *_moved(_MARKER, _step("fence"))),
    _made("lag by pg_current_wal_lsn of a wrong moment", f"{_SLOW}[logical]", _IN_VAIN, *_POSITION),
    _made(
        "lag by pg_current_wal_lsn of a wrong moment, without the comparison", f"{_SLOW}[logical]", _LOST,
        *_POSITION, _COMPARE_OFF,
    ),
    _made(
        "sequences copied before the fence", f"{_SCENARIO}ids_given_until_the_fence_are_not_given_again",
        "id given twice", *_moved(_SEQUENCES, _step("fence")),
    ),
    _made(
        "sequences lowered", f"{_SCENARIO}ids_that_somebody_has_drawn_at_the_new_side_stay_his", "id given twice",
        Edit(
            "cutover/postgres/sequences.py",
            '            needed = f"{value} {beyond} last_value OR ({value} = last_value AND NOT is_called)"\n',
            '            needed = f"{value} <> last_value OR NOT is_called" if beyond else ""\n',
        ),
    ),
    _made(
        "the journal before the marker", f"{_SLOW}[logical]", "journaled while 1 acknowledged writes are not at the",
        *_moved(_JOURNAL, _step("marker")),
        Edit(_FORWARD, "        assert self._marker is not None\n        if self", "        if self"),
        Edit(_FORWARD, '"marker": self._marker.id}', '"marker": self._marker.id if self._marker else ""}'),
    ),
    _made(
        "the marker before the drain, by the model", _MODEL, "no acknowledged write is lost: journaled with",
        *_moved(_MARKER, _step("fence")),
    ),
    _made(
        "sequences copied before the fence, by the model", _MODEL, "gives number 1 a second time",
        *_moved(_SEQUENCES, _step("fence")),
    ),
    _made(
        "the journal before the marker, by the model", _MODEL, "journaled before the marker was",
        *_moved(_JOURNAL, _step("marker")),
    ),
    _made(
        "no reverse stream", f"{_BACK}[eventual]", "journaled without a stream for the way back",
        *_NO_WAY_BACK,
        Edit(
            _FINISH,
            "        await stream.await_marker(await stream.put_marker(), _PROOF_SECONDS)\n",
            "        assert stream and _PROOF_SECONDS\n",
        ),
    ),
    _made(
        "the reverse stream created after the unfence", f"{_BACK}[logical]", "sides differ",
        *_NO_WAY_BACK,
        Edit(
            _FINISH,
            "    stream = env.stream(direction_from(request.to_side))\n",
            "    stream = env.stream(direction_from(request.to_side))\n"
            "    await stream.prepare()\n"
            "    await env.changed(direction_from(request.to_side)).prepare()\n"
            "    await stream.start(copy=False)\n"
            "    while not await stream.ready():\n"
            "        pass\n",
        ),
    ),
    _known('relay by "id > last"', "the relay reads on from the last version that it saw"),
    _known("apply without version", "no guard by versions"),
    _known("delete without tombstone", "tombstones guard nothing"),
    _known("2PC deciding before prepare", "the primary commits before the other side has prepared"),
    _known("lock and read in one statement", "an apply reads before it has the lock"),
    _made(
        "a lease without an expiry of its own",
        f"{_SCENARIO}an_instance_that_was_cut_off_reads_nothing_stale_after_a_switch", "stale read",
        Edit(_GATE, "        return self.clock() < self.until\n", "        return self.until > 0\n"),
    ),
    _made(
        "an instance whose lease ran out writes on in the pause",
        "tests/dualwrite/test_lease.py::"
        "test_in_an_announced_pause_writes_are_refused_without_a_lease_until_the_limit_has_passed",
        "in a pause and without a lease",
        Edit(
            _GATE,
            "        return self.lease.valid or self.lease.clock() < self._pause_seen + self._limit\n",
            "        return self.lease.valid\n",
        ),
    ),
    _made(
        "approval not checked again",
        "tests/switch/test_approved_at_the_flip.py::"
        "test_an_approval_that_was_rejected_behind_the_gate_lets_no_switch_begin", "DID NOT RAISE",
        Edit("activities/switching.py", "        await self._approved(order)\n", ""),
    ),
    _made(
        "a compensation that is done once only", f"{_SCENARIO}an_undo_that_is_killed_is_done_by_the_next_attempt",
        "no side is writable",
        Edit(
            _RECOVERY,
            '    if row.state in ("fencing", "fenced"):\n',
            '    first = row.state != "undoing"\n    if row.state in ("fencing", "fenced"):\n',
        ),
        Edit(_RECOVERY, '    if row.state == "undoing":\n', '    if row.state == "undoing" and first:\n'),
    ),
    _made(
        "no token", f"{_SCENARIO}an_attempt_stopped_past_its_heartbeat_does_nothing_when_it_goes_on",
        "no side is writable",
        Edit(_EPOCH, "    if held != token:\n", "    if False:\n"),
        Edit(
            _EPOCH,
            '    older = [row["pid"] for row in rows if row["token"].isdigit() and int(row["token"]) < token]\n',
            "    older: list[int] = []\n",
        ),
        Edit(
            _SWITCHES,
            "    WHERE migration = $1 AND service = $2 AND token = $3 AND switch_id = $6 AND state = ANY",
            "    WHERE migration = $1 AND service = $2 AND token >= $3 AND switch_id = $6 AND state = ANY",
        ),
        Edit("cutover/switch/section.py", "    if row.token != attempt.row.token:\n", "    if False:\n"),
    ),
    _made(
        "the marker taken when it is visible, the target killed",
        "tests/streams/test_logical_kills.py::"
        "test_what_a_marker_has_told_outlives_the_targets_death_with_the_source_gone", "a marker that had been awaited",
        Edit("cutover/streams/logical.py", "        await epoch.make_durable(sink)\n", ""),
    ),
    _made(
        "a forward stream without `origin = none`", _ORIGINS,
        "the forward stream sends back what the reverse one brought",
        Edit(
            "cutover/streams/logical.py", "copy=copy, origins=apart\n",
            'copy=copy, origins=apart and self.direction == "reverse"\n',
        ),
    ),
    _made(
        "streams without `origin = none`", _ORIGINS,
        "the reverse stream sends back what the forward one brought",
        Edit("cutover/postgres/replication.py", '", origin = none)" if origins', '", origin = any)" if origins'),
    ),
    _known("the janitor by absence", "absence is observed and not decided"),
    _made(
        "apply in a single statement",
        "tests/streams/test_outbox_guard.py::"
        "test_a_delete_that_waited_for_an_older_insert_deletes_what_that_wrote", r"\['a'\] == \[\]",
        Edit(_SINK, _APPLY, _APPLY_AT_ONCE),
    ),
    _made(
        "no barrier for reads before the fence", f"{_SCENARIO}a_read_in_the_pause_waits_for_its_end", "stale read",
        Edit(
            _LENDING,
            "            if inside is None and not access.stale_ok:\n",
            '            if inside is None and access.operation == "write":\n',
        ),
        Edit(
            _LENDING,
            "            if access.stale_ok:\n                slot = None\n",
            '            if access.operation == "read":\n                slot = None\n',
        ),
    ),
)  # fmt: skip


def main(names: list[str]) -> int:
    verdicts = run(chosen(MUTANTS, names))
    if verdicts is None:
        return 1
    caught = [verdict for verdict in verdicts if verdict.caught]
    for verdict in caught:
        print(f"{verdict.mutant.name}: caught by {verdict.mutant.test}")
    survived = [verdict.mutant.name for verdict in verdicts if not verdict.caught]
    if survived:
        print(f"{len(survived)} survived: {', '.join(survived)}")
    print(f"{len(caught)} of {len(verdicts)} caught")
    print(json.dumps({"mutants": len(verdicts), "caught": len(caught)}))
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
