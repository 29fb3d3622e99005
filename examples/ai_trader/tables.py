"""The nine tables of the example: which service owns each, and how one row of it is found again.

A row is found by its primary key, or, where an answer was lost and the key with it, by the *token*: a unique
text of the application's own (an order id, a request id, an e-mail address) that was chosen before the insert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: A primary key as it stands in a log: `17`, `"3f0c…"`, or `["3f0c…", "rsi"]` for a composite one.
Key = int | str | tuple[str, ...]

#: service → the name of its database in the plan.
SERVICES: Mapping[str, str] = {
    "api_gateway": "api_gateway_db",
    "orchestrator": "orchestrator_db",
    "trading_engine": "trading_engine_db",
    "ai_decision": "ai_decision_db",
    "analytics": "analytics_db",
}

#: What an id of the generator looks like in each token: `gen-17`; traffic never makes one.
GENERATED = "gen-"


@dataclass(frozen=True)
class Table:
    """One table's owner and the constant statements that look at it."""

    name: str
    service: str
    #: (key, token, revision) of the rows with these keys; $1 is an array of the first key column.
    by_key: str
    #: The same by token.
    by_token: str
    #: (rows, digest) of the whole table; the digest does not depend on the order of the rows.
    digest: str
    key_width: int = 1

    def key(self, value: object) -> Key:
        """A key as read from a log's JSON."""
        if isinstance(value, list):
            return tuple(str(part) for part in value)
        return value if isinstance(value, int) else str(value)

    def lookup(self, keys: Sequence[Key]) -> list[int] | list[str]:
        """The argument of `by_key` for these keys."""
        if self.key_width > 1:
            return sorted({key[0] for key in keys if isinstance(key, tuple)})
        numbers = [key for key in keys if isinstance(key, int)]
        return numbers or [key for key in keys if isinstance(key, str)]


_TABLES = (
    Table(
        "users",
        "api_gateway",
        "SELECT id AS key, email AS token, revision FROM users WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, email AS token, revision FROM users WHERE email = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM users t",
    ),
    Table(
        "strategies",
        "orchestrator",
        "SELECT id AS key, code AS token, revision FROM strategies WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, code AS token, revision FROM strategies WHERE code = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM strategies t",
    ),
    Table(
        "agent_status",
        "orchestrator",
        "SELECT agent_id AS key, agent_id AS token, revision FROM agent_status WHERE agent_id = ANY($1::text[])",
        "SELECT agent_id AS key, agent_id AS token, revision FROM agent_status WHERE agent_id = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM agent_status t",
    ),
    Table(
        "trades",
        "trading_engine",
        "SELECT id AS key, client_order_id AS token, revision FROM trades WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, client_order_id AS token, revision FROM trades WHERE client_order_id = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM trades t",
    ),
    Table(
        "positions",
        "trading_engine",
        "SELECT id AS key, account_ref AS token, revision FROM positions WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, account_ref AS token, revision FROM positions WHERE account_ref = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM positions t",
    ),
    Table(
        "ai_decisions",
        "ai_decision",
        "SELECT id::text AS key, request_id AS token, revision FROM ai_decisions WHERE id = ANY($1::uuid[])",
        "SELECT id::text AS key, request_id AS token, revision FROM ai_decisions WHERE request_id = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ai_decisions t",
    ),
    Table(
        "ai_decision_features",
        "ai_decision",
        "SELECT ARRAY[decision_id::text, feature_name] AS key, decision_id || '/' || feature_name AS token, revision "
        "FROM ai_decision_features WHERE decision_id = ANY($1::uuid[])",
        "SELECT ARRAY[f.decision_id::text, f.feature_name] AS key, w.token, f.revision "
        "FROM unnest($1::text[]) w (token) "
        "JOIN ai_decision_features f ON f.decision_id = split_part(w.token, '/', 1)::uuid "
        "AND f.feature_name = split_part(w.token, '/', 2)",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ai_decision_features t",
        key_width=2,
    ),
    Table(
        "ai_calibration_log",
        "ai_decision",
        "SELECT id AS key, run_ref AS token, revision FROM ai_calibration_log WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, run_ref AS token, revision FROM ai_calibration_log WHERE run_ref = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ai_calibration_log t",
    ),
    Table(
        "ai_trade_outcomes",
        "analytics",
        "SELECT id AS key, evaluation_ref AS token, revision FROM ai_trade_outcomes WHERE id = ANY($1::bigint[])",
        "SELECT id AS key, evaluation_ref AS token, revision FROM ai_trade_outcomes "
        "WHERE evaluation_ref = ANY($1::text[])",
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)), 0)::text FROM ai_trade_outcomes t",
    ),
)

TABLES: Mapping[str, Table] = {table.name: table for table in _TABLES}

#: table → the service that owns it.
OWNERS: Mapping[str, str] = {table.name: table.service for table in _TABLES}
