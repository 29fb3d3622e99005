"""The statements that make the generator's rows.

In each INSERT `i` is the row's number from $1 to $2, $3 the seed, and $4 onwards are the row counts of the tables that
the row points to. `u(k)` is a number in [0, 1) that depends on the row's number, k and the seed alone; `at(i)` is a
time, `symbol(x)` one of twenty symbols for x in [0, 1), `decision(n)` the uuid of the n-th decision.
Skew: u ^ 4 sends about a third of all trades to one hundredth of the users, u ^ 2 prefers a few symbols.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

FUNCTIONS = """
CREATE OR REPLACE FUNCTION pg_temp.u(i bigint, salt bigint) RETURNS double precision IMMUTABLE LANGUAGE sql AS
    'SELECT (hashint8extended(i, salt) & 4294967295)::double precision / 4294967296.0';
CREATE OR REPLACE FUNCTION pg_temp.decision(i bigint, seed bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT md5(seed || ':' || i)::uuid $$;
CREATE OR REPLACE FUNCTION pg_temp.symbol(x double precision) RETURNS text IMMUTABLE LANGUAGE sql AS $$
    SELECT ('{BTCUSDT,ETHUSDT,SOLUSDT,XRPUSDT,BNBUSDT,ADAUSDT,DOGEUSDT,AVAXUSDT,LINKUSDT,DOTUSDT,LTCUSDT,TRXUSDT,'
            'MATICUSDT,UNIUSDT,ATOMUSDT,ETCUSDT,XLMUSDT,NEARUSDT,APTUSDT,FILUSDT}'::text[])[1 + (x * 20)::int % 20] $$;
CREATE OR REPLACE FUNCTION pg_temp.at(i bigint) RETURNS timestamptz IMMUTABLE LANGUAGE sql AS
    $$ SELECT timestamptz '2026-01-01 00:00:00+00' + i * interval '11.037019 seconds' $$;
"""

ANALYZE = """
ANALYZE users, strategies, agent_status, trades, positions, ai_decisions, ai_decision_features, ai_calibration_log,
    ai_trade_outcomes
"""


@dataclass(frozen=True)
class Statements:
    """How one table is filled. `counts` names the tables whose row counts are $4, $5 …"""

    filled: str
    insert: str
    counts: tuple[str, ...] = ()
    sequence: str = ""


def _expand(template: Statements) -> Statements:
    """The short forms written out: functions are the session's own, numbers are bigint."""
    insert = re.sub(r"(?<!\w)(at|symbol|decision)\(", r"pg_temp.\1(", template.insert)
    insert = re.sub(r"(?<!\w)u\((\d+)\)", r"pg_temp.u(i, $3 + \1)", insert)
    return replace(template, insert=re.sub(r"\$([3-9])", r"$\1::bigint", insert))


_TEMPLATES: Mapping[str, Statements] = {
    "users": Statements(
        "SELECT EXISTS (SELECT FROM users)",
        """
        INSERT INTO users (id, email, display_name, risk_profile, balance, created_at, updated_at, deleted_at)
        OVERRIDING SYSTEM VALUE
        SELECT i, 'gen-' || i || '@traders.example', 'Trader ' || i,
               jsonb_build_object('level', 1 + (u(0) * 5)::int, 'leverage', round((u(1) * 10)::numeric, 2)),
               round((exp(u(2) * 14))::numeric, 8), at(i), at(i),
               CASE WHEN u(3) < 0.02 THEN at(i) + interval '30 days' END
        FROM generate_series($1::bigint, $2::bigint) i""",
        (),
        "SELECT setval('users_id_seq', (SELECT max(id) FROM users))",
    ),
    "strategies": Statements(
        "SELECT EXISTS (SELECT FROM strategies)",
        """
        INSERT INTO strategies (id, user_id, code, name, parameters, max_loss, active, created_at, updated_at)
        SELECT i, 1 + floor(u(10) ^ 3 * $4)::bigint, 'gen-' || i, 'Strategy ' || i,
               jsonb_build_object('fast', 5 + (u(11) * 20)::int, 'slow', 30 + (u(12) * 170)::int,
                                  'symbols', jsonb_build_array(symbol(u(13)), symbol(u(14)))),
               round((10 + u(15) * 5000)::numeric, 8), u(16) < 0.8, at(i), at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("users",),
        "SELECT setval('strategies_id_seq', (SELECT max(id) FROM strategies))",
    ),
    "agent_status": Statements(
        "SELECT EXISTS (SELECT FROM agent_status)",
        """
        INSERT INTO agent_status (agent_id, kind, state, last_heartbeat, error_count, details)
        SELECT 'gen-' || i, ('{signal,risk,execution,calibration}'::text[])[1 + i % 4],
               ('{idle,running,running,paused,error}'::agent_state[])[1 + (u(20) * 4)::int],
               at(i), (u(21) * 4)::int, jsonb_build_object('host', 'node-' || i % 7, 'version', '2.4.' || i % 3)
        FROM generate_series($1::bigint, $2::bigint) i""",
    ),
    "trades": Statements(
        "SELECT EXISTS (SELECT FROM trades)",
        """
        INSERT INTO trades (id, user_id, strategy_id, client_order_id, symbol, side, status, quantity, price, fee,
                            tags, executed_at, created_at, updated_at)
        SELECT i, 1 + floor(u(30) ^ 4 * $4)::bigint,
               CASE WHEN u(31) < 0.7 THEN 1 + floor(u(32) ^ 3 * $5)::bigint END,
               'gen-' || i, symbol(u(33) ^ 2),
               CASE WHEN u(34) < 0.52 THEN 'buy' ELSE 'sell' END::trade_side,
               ('{filled,filled,filled,filled,filled,filled,filled,cancelled,rejected,open,pending,partially_filled}'
                ::trade_status[])[1 + floor(u(35) * 12)::int],
               round((0.0001 + exp(u(36) * 8) / 100)::numeric, 8), round((0.01 + u(37) * 60000)::numeric, 8),
               round((u(38) * 3)::numeric, 8),
               CASE WHEN u(39) < 0.1 THEN '{manual,"after hours"}'::text[] ELSE '{}' END,
               CASE WHEN u(35) < 0.58 THEN at(i) + interval '0.25 seconds' END, at(i), at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("users", "strategies"),
        "SELECT setval('trades_id_seq', (SELECT max(id) FROM trades))",
    ),
    "positions": Statements(
        "SELECT EXISTS (SELECT FROM positions)",
        # One open position for a user and symbol: the first 20 rounds over the users open one symbol each at most.
        """
        INSERT INTO positions (id, user_id, account_ref, symbol, quantity, average_price, unrealized_pnl, opened_at,
                               closed_at, last_synced_at)
        SELECT i, 1 + (i - 1) % $4, 'gen-' || i, symbol((((i - 1) / $4) % 20)::double precision / 20),
               round((u(40) * 200 - 50)::numeric, 8), round((0.01 + u(41) * 60000)::numeric, 8),
               round((u(42) * 2000 - 1000)::numeric, 8), at(i),
               CASE WHEN (i - 1) / $4 >= 20 OR u(43) < 0.3 THEN at(i) + interval '2 days' END, at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("users",),
        "SELECT setval('positions_id_seq', (SELECT max(id) FROM positions))",
    ),
    "ai_decisions": Statements(
        "SELECT EXISTS (SELECT FROM ai_decisions)",
        # One in 500 has a text of more than 8 kB that does not compress away: it lies in the TOAST table.
        """
        INSERT INTO ai_decisions (id, strategy_id, request_id, symbol, action, confidence, features, reasoning, model,
                                  created_at)
        SELECT decision($3, i), CASE WHEN u(50) < 0.9 THEN 1 + floor(u(51) ^ 3 * $4)::bigint END,
               'gen-' || i, symbol(u(52) ^ 2), ('{buy,sell,hold,close}'::decision_action[])[1 + i % 4],
               u(53),
               jsonb_build_object('rsi', round((u(54) * 100)::numeric, 2), 'trend',
                                  CASE WHEN u(55) < 0.5 THEN 'up' ELSE 'down' END, 'news', i % 3 = 0),
               CASE WHEN u(56) < 0.002 THEN (SELECT string_agg(md5(i || ':' || n), ' ')
                                                 FROM generate_series(1, 400) n)
                    WHEN u(57) < 0.5 THEN 'momentum over ' || i % 90 || ' bars, spread within limits' END,
               ('{atlas-2,atlas-3,borealis}'::text[])[1 + i % 3], at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("strategies",),
    ),
    "ai_decision_features": Statements(
        "SELECT EXISTS (SELECT FROM ai_decision_features)",
        """
        INSERT INTO ai_decision_features (decision_id, feature_name, value, weight, detail)
        SELECT decision($3, 1 + (i - 1) % $4),
               ('{rsi,macd,volume,spread,sentiment,volatility}'::text[])[1 + ((i - 1) / $4) % 6]
                   || CASE WHEN (i - 1) / $4 < 6 THEN '' ELSE '_' || (i - 1) / $4 / 6 END,
               CASE WHEN u(60) < 0.98 THEN u(61) * 200 - 100 END, round(u(62)::numeric, 8),
               CASE WHEN u(63) < 0.1 THEN jsonb_build_object('window', 14, 'source', 'feed-' || i % 5) END
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("ai_decisions",),
    ),
    "ai_calibration_log": Statements(
        "SELECT EXISTS (SELECT FROM ai_calibration_log)",
        """
        INSERT INTO ai_calibration_log (id, run_ref, model, bucket, predicted, observed, sample_size, calibrated_at)
        SELECT i, 'gen-' || i, ('{atlas-2,atlas-3,borealis}'::text[])[1 + i % 3], i % 10,
               round((i % 10 * 0.1 + 0.05)::numeric, 8), round(u(70)::numeric, 8), (u(71) * 5000)::int, at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        (),
        "SELECT setval('ai_calibration_log_id_seq', (SELECT max(id) FROM ai_calibration_log))",
    ),
    "ai_trade_outcomes": Statements(
        "SELECT EXISTS (SELECT FROM ai_trade_outcomes)",
        """
        INSERT INTO ai_trade_outcomes (id, trade_id, decision_id, evaluation_ref, pnl, holding, success, metrics,
                                       evaluated_at)
        SELECT i, 1 + floor(u(80) * $4)::bigint,
               CASE WHEN u(81) < 0.95 THEN decision($3, 1 + floor(u(82) * $5)::bigint) END,
               'gen-' || i, round((u(83) * 4000 - 1900)::numeric, 8), u(84) * interval '3 days',
               u(83) > 0.475, jsonb_build_object('slippage', round(u(85)::numeric, 4)), at(i)
        FROM generate_series($1::bigint, $2::bigint) i""",
        ("trades", "ai_decisions"),
        "SELECT setval('ai_trade_outcomes_id_seq', (SELECT max(id) FROM ai_trade_outcomes))",
    ),
}

STATEMENTS: Mapping[str, Statements] = {name: _expand(template) for name, template in _TEMPLATES.items()}
