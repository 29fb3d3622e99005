"""Plans for the tests of the control database."""

from cutover.plan.models import Plan


def plan(migration: str = "ai-trader", tables: tuple[str, ...] = ("trades", "positions"), soak: str = "1h") -> Plan:
    """Two services; `trading_engine` has the tables that are named."""
    return Plan.model_validate(
        {
            "migration": migration,
            "monolith": {"database": "monolith"},
            "services": {
                "trading_engine": {"database": "trading_engine_db", "tables": {table: {} for table in tables}},
                "analytics": {"database": "analytics_db", "tables": {"ai_trade_outcomes": {}}},
            },
            "switchover": {"soak": soak},
            "tasks": {"tested_in_staging": {"owner": "backend-team", "duration": "3d", "phase": "preparation"}},
            "default_tasks": False,
        }
    )
