"""Proves the tests of dual-write: takes each remedy out of a copy of the source, and requires its test to fail.

    python -m scripts.mutants_dualwrite [NAME …]

The lines are those of docs/dual-write-proofs.md. First all tests have to pass in the copy as it is; then each mutant's
tests have to fail, by what they assert. Exit status 1 if one survives.
"""

import sys

from scripts.mutants import Mutant, chosen, run

_CAPTURE, _SINK = "cutover/postgres/outbox_capture.py", "cutover/postgres/outbox_sink.py"
_SOURCE, _TWO_PHASE = "cutover/postgres/outbox_source.py", "cutover/postgres/two_phase.py"
_RELAY, _APPLY = "cutover/streams/outbox/relay.py", "cutover/streams/outbox/apply.py"
_READS = "tests/dualwrite/test_read_your_writes.py"
_GUARD = '"deleted = excluded.deleted, applied_at = excluded.applied_at WHERE r.version < excluded.version "'
_CARRY = "            outcome = await applier.carry(batch, {shard: tokens[shard] for shard in batch.shards})"
_VERSION = 'version = f"nextval({quote_literal(version_sequence(service).sql)}::regclass)"'
_ROWS_READ = "        rows = await connection.fetch(sql, *arguments)\n        batch = "

MUTANTS = (
    Mutant(
        "no intent in the writer's transaction",
        "tests/dualwrite/test_strong_kills.py::test_a_process_killed_right_after_its_commit_leaves_the_other_side_to_the_relay",
        r"assert \[\] == \[1\]",
        _CAPTURE,
        """    {insert} VALUES ({_shard(new)}, {version}, left(TG_OP, 1)::"char", {table}""",
        """    RETURN NULL; {insert} VALUES ({_shard(new)}, {version}, left(TG_OP, 1)::"char", {table}""",
    ),
    Mutant(
        "the primary commits before the other side has prepared",
        "tests/dualwrite/test_strong_kills.py::test_a_write_whose_preparing_is_not_answered_for_is_made_once_more_and_nothing_of_the_first_is_left",
        "UniqueViolationError",
        "cutover/dualwrite/strong.py",
        "                    await self._branch.prepare()\n",
        "                    await transaction.commit()\n                    await self._branch.prepare()\n",
    ),
    Mutant(
        "intents are forgotten before they are applied",
        "tests/streams/test_outbox_order.py::test_what_was_read_and_not_applied_stays_in_the_outbox",
        "assert 0 == 9",
        _RELAY,
        _CARRY,
        "            await outbox_source.forget(ends.source, service, [i for c in batch.changes for i in c.intents])\n"
        + _CARRY,
    ),
    Mutant(
        "a lost answer counts as failed",
        "tests/dualwrite/test_lost_answers.py::test_a_transaction_that_was_committed_is_answered_as_such",
        'UniqueViolationError: .* "trades_pkey"',
        "cutover/dualwrite/transactions.py",
        "        decision = await ending.decided()\n",
        '        decision = "abort"\n',
    ),
    Mutant(
        "absence is observed and not decided",
        "tests/dualwrite/test_strong_kills.py::test_a_process_that_sleeps_before_its_commit_is_not_overtaken",
        "the sides differ",
        _TWO_PHASE,
        "\"INSERT INTO cutover.decision (gid, service, outcome) VALUES ($1, $2, 'abort') ON CONFLICT DO NOTHING\",",
        '"SELECT $1::text, $2::text",',
    ),
    Mutant(
        "versions are the beginnings of transactions",
        "tests/streams/test_outbox_order.py::test_writers_of_one_key_are_applied_in_the_order_of_its_lock_whoever_began_first",
        "assert 'began later' == 'began first'",
        _CAPTURE,
        _VERSION,
        'version = "(extract(epoch FROM now()) * 1000000)::int8"',
    ),
    Mutant(
        "an apply reads before it has the lock",
        "tests/streams/test_outbox_guard.py::test_an_apply_that_waited_for_a_newer_one_sees_what_it_wrote",
        r"assert \(1, 1\) == \(1, 0\)",
        _SINK,
        "        newer = await _raise_versions(connection, service, ordered)\n        for name, flow",
        "        newer = ordered\n        for name, flow",
    ),
    Mutant(
        "no guard by versions",
        "tests/streams/test_outbox_guard.py::test_a_late_retry_does_not_overwrite_a_newer_value",
        "assert 1 == 0",
        _SINK,
        _GUARD,
        _GUARD.replace(" WHERE r.version < excluded.version", ""),
    ),
    Mutant(
        "tombstones guard nothing",
        "tests/streams/test_outbox_guard.py::test_a_late_retry_does_not_bring_a_deleted_row_back",
        "assert 1 == 0",
        _SINK,
        _GUARD,
        _GUARD.replace("excluded.version ", "excluded.version OR r.deleted "),
    ),
    Mutant(
        "deletes are not guarded",
        "tests/streams/test_outbox_guard.py::test_a_late_delete_does_not_remove_a_row_that_was_inserted_again",
        "assert 1 == 0",
        _SINK,
        _GUARD,
        _GUARD.replace("excluded.version ", "excluded.version OR excluded.deleted "),
    ),
    Mutant(
        "the other side commits first",
        "tests/dualwrite/test_strong_kills.py::test_a_process_killed_at_any_step_leaves_both_sides_or_neither[strong.prepare.after]",
        "assert 0 == 1",
        _TWO_PHASE,
        'f"PREPARE TRANSACTION {quote_literal(gid)}"',
        '"COMMIT"',
    ),
    Mutant(
        "foreign keys act at the other side",
        "tests/streams/test_outbox_order.py::test_half_a_transaction_meets_no_foreign_key_and_the_other_half_follows",
        "children are here before their parents",
        "cutover/postgres/applier.py",
        "SET session_replication_role = replica; ",
        "",
    ),
    Mutant(
        "what is in the way stays in the way",
        "tests/streams/test_outbox_conflicts.py::test_unique_values_change_places_in_one_batch_and_across_shards",
        "assert 'n3' == 'n38'",
        _APPLY,
        "            if not await self._make_way(changes, tokens, outcome):\n",
        "            if True:\n",
    ),
    Mutant(
        "capture passes over replica mode",
        "tests/streams/test_outbox.py::test_writers_that_bypass_the_library_are_captured",
        "rows of some writer were not captured",
        _CAPTURE,
        'ENABLE ALWAYS TRIGGER {trigger}"',
        'ENABLE TRIGGER {trigger}"',
    ),
    Mutant(
        "TRUNCATE is not captured",
        "tests/streams/test_outbox.py::test_truncate_is_the_delete_of_every_row_or_refused",
        "the sides differ",
        _CAPTURE,
        """        body = f"\\n    EXECUTE format({quote_literal(query + '%s AS t')}, TG_RELID::regclass);"\n""",
        '        body = ""\n',
    ),
    Mutant(
        "columns are those of the beginning",
        "tests/streams/test_outbox_order.py::test_rows_are_not_read_for_columns_that_a_table_had_before",
        "DID NOT RAISE Redefined",
        _SOURCE,
        "        await require_definition(connection, [flow.table for flow in flows.values()], known)\n",
        "",
    ),
    Mutant(
        "the relay reads on from the last version that it saw",
        "tests/streams/test_outbox.py::test_a_version_drawn_early_and_committed_late_is_not_passed_over",
        "the forward stream did not carry a marker to",
        _SOURCE,
        _ROWS_READ,
        _ROWS_READ.replace(
            "        batch = ",
            '        last = _read.__dict__.get("last", 0)\n'
            '        _read.__dict__["last"] = max([last, *(row["version"] for row in rows)])\n'
            '        rows = [row for row in rows if row["version"] > last]\n'
            "        batch = ",
        ),
    ),
    Mutant(
        "a relay that was overtaken goes on",
        "tests/streams/test_outbox_guard.py::test_the_relay_that_lost_its_lease_and_one_whose_sink_is_primary_are_refused",
        "DID NOT RAISE StaleAttempt",
        _SINK,
        '    if allowed["held"] != len(tokens):\n',
        "    if False:\n",
    ),
    Mutant(
        "a stream goes on into the side that has become the primary",
        "tests/streams/test_outbox_guard.py::test_the_relay_that_lost_its_lease_and_one_whose_sink_is_primary_are_refused",
        "DID NOT RAISE StaleAttempt",
        _SINK,
        '        if changes and not allowed["is_sink"]:\n',
        "        if False:\n",
    ),
    Mutant(
        "versions of two epochs are not comparable",
        "tests/streams/test_outbox_guard.py::test_versions_are_comparable_across_a_switch_and_back",
        "versions of the second epoch are not above those of the first one",
        "cutover/postgres/epoch.py",
        "        await raise_versions(connection, service, epoch * EPOCH_VERSIONS)\n",
        "        assert raise_versions and EPOCH_VERSIONS\n",
    ),
    Mutant(
        "one poisonous row is tried for ever",
        "tests/streams/test_outbox_conflicts.py::test_a_poison_row_is_held_with_all_behind_it_and_nothing_else_is",
        "not within 20 s: the poison is held",
        _RELAY,
        "            if refusal.may_pass and (patient or strikes[place] < _STRIKES):\n",
        "            if True:\n",
    ),
    Mutant(
        "a unique index that came later is not looked for",
        "tests/streams/test_outbox_conflicts.py::test_a_value_of_an_index_that_came_in_the_middle_is_carried_once_the_indexes_are_read_anew",
        "DID NOT RAISE .*Redefined",
        "cutover/postgres/outbox_tables.py",
        "        if await uniques.of_table(sink, flow.table) != flow.uniques:\n",
        "        if False:\n",
    ),
    Mutant(
        "what a crash may take back is carried over",
        "tests/streams/test_outbox_guard.py::test_what_a_crash_of_the_source_could_take_back_is_not_carried_over",
        "carried over before it was on the disk",
        _SOURCE,
        "        await epoch.make_durable(connection)\n",
        "        assert epoch\n",
    ),
    Mutant(
        "a read that has moved does not ask whether its stream stands",
        f"{_READS}::test_a_read_notices_by_itself_that_its_stream_went_while_another_process_writes_alone",
        "assert 0 == 1",
        "cutover/dualwrite/reads.py",
        "    await gate.mirror.require(lent.connection, lent.slot.rests_on)\n",
        "    return\n",
    ),
    Mutant(
        "who wrote alone answers by what it has seen long ago",
        f"{_READS}::test_a_write_that_was_done_alone_is_answered_once_a_stream_that_came_up_meanwhile_has_carried_it",
        "it does not hear of the new stream",
        "cutover/dualwrite/writes.py",
        "        await sides.answerable()\n",
        "        return\n",
    ),
    Mutant(
        "a stream that was built anew is rested on before its gap is closed",
        f"{_READS}::test_they_stay_at_the_primary_until_the_gap_of_a_stream_built_anew_is_closed",
        "assert 0 == 1",
        "cutover/postgres/outbox_lease.py",
        "            not gap,\n",
        "            True,\n",
    ),
)


def main(names: list[str]) -> int:
    verdicts = run(chosen(MUTANTS, names))
    if verdicts is None:
        return 1
    survived = [verdict.mutant.name for verdict in verdicts if not verdict.caught]
    if survived:
        print(f"{len(survived)} of {len(verdicts)} survived: {', '.join(survived)}")
        return 1
    print(f"all {len(verdicts)} mutants were caught")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
