"""The application's own statements: what it inserts, changes, deletes and reads.

Each write gives the row's key back, so "no row" is seen. Changes and deletes name the revision that they expect, as
an application with optimistic locks does: a write that got lost on the way shows at the next one.
"""

import random
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from examples.ai_trader.tables import Key

Arguments = tuple[Any, ...]

SYMBOLS = (
    "BTCUSDT",
    "ETHUSDT",
    "SOLUSDT",
    "XRPUSDT",
    "BNBUSDT",
    "ADAUSDT",
    "DOGEUSDT",
    "AVAXUSDT",
    "LINKUSDT",
    "DOTUSDT",
)
FEATURES = ("rsi", "macd", "volume", "spread", "sentiment", "volatility")
_STATES = ("idle", "running", "paused", "error")

INSERT: Mapping[str, str] = {
    "users": "INSERT INTO users (email, display_name, balance) VALUES ($1, $2, $3) RETURNING id AS key",
    "strategies": "INSERT INTO strategies (code, user_id, name, parameters) VALUES ($1, $2, $3, $4::text::jsonb) "
    "RETURNING id AS key",
    "agent_status": "INSERT INTO agent_status (agent_id, kind, state) VALUES ($1, $2, $3) RETURNING agent_id AS key",
    "trades": "INSERT INTO trades (client_order_id, user_id, strategy_id, symbol, side, quantity, price) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id AS key",
    "positions": "INSERT INTO positions (account_ref, user_id, symbol, quantity, average_price) "
    "VALUES ($1, $2, $3, $4, $5) RETURNING id AS key",
    "ai_decisions": "INSERT INTO ai_decisions (request_id, id, strategy_id, symbol, action, confidence, features, "
    "reasoning, model) VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8, 'atlas-3') RETURNING id::text AS key",
    "ai_decision_features": "INSERT INTO ai_decision_features (decision_id, feature_name, value, weight) "
    "VALUES ($1, $2, $3, $4) RETURNING ARRAY[decision_id::text, feature_name] AS key",
    "ai_calibration_log": "INSERT INTO ai_calibration_log (run_ref, model, bucket, predicted, sample_size) "
    "VALUES ($1, 'atlas-3', $2, $3, $4) RETURNING id AS key",
    "ai_trade_outcomes": "INSERT INTO ai_trade_outcomes (evaluation_ref, trade_id, decision_id, pnl) "
    "VALUES ($1, $2, $3, $4) RETURNING id AS key",
}

#: $1 is the key, $2 the new revision. A feature's key is its decision and, as $4, its name.
UPDATE: Mapping[str, str] = {
    "users": "UPDATE users SET balance = $3, revision = $2 WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key",
    "strategies": "UPDATE strategies SET max_loss = $3, revision = $2 WHERE id = $1 AND revision = $2 - 1 "
    "RETURNING id AS key",
    "agent_status": "UPDATE agent_status SET state = $3, last_heartbeat = now(), revision = $2 "
    "WHERE agent_id = $1 AND revision = $2 - 1 RETURNING agent_id AS key",
    "trades": "UPDATE trades SET status = $3, executed_at = now(), fee = $4, revision = $2 "
    "WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key",
    "positions": "UPDATE positions SET unrealized_pnl = $3, last_synced_at = now(), revision = $2 "
    "WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key",
    "ai_decisions": "UPDATE ai_decisions SET confidence = $3, revision = $2 WHERE id = $1 AND revision = $2 - 1 "
    "RETURNING id::text AS key",
    "ai_decision_features": "UPDATE ai_decision_features SET value = $3, revision = $2 "
    "WHERE decision_id = $1 AND feature_name = $4 AND revision = $2 - 1 "
    "RETURNING ARRAY[decision_id::text, feature_name] AS key",
    "ai_calibration_log": "UPDATE ai_calibration_log SET observed = $3, revision = $2 "
    "WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key",
    "ai_trade_outcomes": "UPDATE ai_trade_outcomes SET pnl = $3::numeric, success = $3::numeric > 0, revision = $2 "
    "WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key",
}

CLOSE_POSITION = (
    "UPDATE positions SET closed_at = now(), quantity = 0, last_synced_at = now(), revision = $2 "
    "WHERE id = $1 AND revision = $2 - 1 RETURNING id AS key"
)

#: $1 is the key, $2 the revision expected; a feature's name is $3.
DELETE: Mapping[str, str] = {
    "users": "DELETE FROM users WHERE id = $1 AND revision = $2 RETURNING id AS key",
    "strategies": "DELETE FROM strategies WHERE id = $1 AND revision = $2 RETURNING id AS key",
    "agent_status": "DELETE FROM agent_status WHERE agent_id = $1 AND revision = $2 RETURNING agent_id AS key",
    "trades": "DELETE FROM trades WHERE id = $1 AND revision = $2 RETURNING id AS key",
    "positions": "DELETE FROM positions WHERE id = $1 AND revision = $2 RETURNING id AS key",
    "ai_decisions": "DELETE FROM ai_decisions WHERE id = $1 AND revision = $2 RETURNING id::text AS key",
    "ai_decision_features": "DELETE FROM ai_decision_features WHERE decision_id = $1 AND revision = $2 "
    "AND feature_name = $3 RETURNING ARRAY[decision_id::text, feature_name] AS key",
    "ai_calibration_log": "DELETE FROM ai_calibration_log WHERE id = $1 AND revision = $2 RETURNING id AS key",
    "ai_trade_outcomes": "DELETE FROM ai_trade_outcomes WHERE id = $1 AND revision = $2 RETURNING id AS key",
}

#: Lists that people look at and that may be some seconds old: (table, statement); $1 is a user's id.
BROWSE: tuple[tuple[str, str], ...] = (
    (
        "trades",
        "SELECT id, symbol, side, status, quantity, price FROM trades WHERE user_id = $1 "
        "ORDER BY created_at DESC LIMIT 20",
    ),
    (
        "positions",
        "SELECT id, symbol, quantity, unrealized_pnl FROM positions WHERE user_id = $1 AND closed_at IS NULL",
    ),
    ("strategies", "SELECT id, name, parameters FROM strategies WHERE user_id = $1 AND active"),
    ("users", "SELECT display_name, balance, risk_profile FROM users WHERE id = $1"),
)

#: Trades are given to the generator's users alone: nobody deletes those.
GENERATED_USERS = "SELECT count(*) AS rows FROM users WHERE email LIKE 'gen-%'"
ROW_ESTIMATE = "SELECT greatest(reltuples, 0)::bigint AS rows FROM pg_class WHERE oid = to_regclass($1)"


def money(rng: random.Random, low: float, high: float) -> Decimal:
    """An amount with eight places."""
    return Decimal(round(rng.uniform(low, high) * 10**8)).scaleb(-8)


#: table → the arguments of UPDATE from $3 on.
CHANGES: Mapping[str, Callable[[random.Random], Arguments]] = {
    "users": lambda rng: (money(rng, 0, 90_000),),
    "strategies": lambda rng: (money(rng, 1, 900),),
    "agent_status": lambda rng: (rng.choice(_STATES),),
    "trades": lambda rng: (rng.choice(("open", "partially_filled", "filled")), money(rng, 0, 3)),
    "positions": lambda rng: (money(rng, -900, 900),),
    "ai_decisions": lambda rng: (rng.random(),),
    "ai_decision_features": lambda rng: (rng.uniform(-100, 100),),
    "ai_calibration_log": lambda rng: (money(rng, 0, 1),),
    "ai_trade_outcomes": lambda rng: (money(rng, -900, 900),),
}


def trade(rng: random.Random, user: Key, strategy: Key | None, symbol: str) -> Arguments:
    """The arguments of a trade's INSERT after its token."""
    side = rng.choice(("buy", "sell"))
    return (user, strategy, symbol, side, money(rng, 0.001, 5), money(rng, 0.5, 60_000))


def decision(rng: random.Random, key: str, strategy: Key | None) -> Arguments:
    """The arguments of a decision's INSERT after its token; now and then a text of more than 8 kB."""
    reasoning = rng.randbytes(5_000).hex() if rng.random() < 0.01 else "momentum with the trend, spread within limits"
    features = f'{{"rsi": {rng.uniform(0, 100):.2f}, "trend": "up", "depth": {rng.randrange(50)}}}'
    action = rng.choice(("buy", "sell", "hold"))
    return (uuid.UUID(key), strategy, rng.choice(SYMBOLS), action, rng.random(), features, reasoning)
