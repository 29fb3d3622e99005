"""Workflow ids: fixed, so that a second start of the same thing is refused by the server."""


def migration(plan: str) -> str:
    return f"migration/{plan}"


def preparation(plan: str) -> str:
    return f"migration/{plan}/preparation"


def replication(plan: str, service: str) -> str:
    return f"migration/{plan}/{service}/replication"


def switchover(plan: str, service: str) -> str:
    return f"migration/{plan}/{service}/switchover"


def reconciliation(plan: str, service: str, table: str) -> str:
    return f"migration/{plan}/{service}/{table}/reconciliation"


def cleanup(plan: str) -> str:
    return f"migration/{plan}/cleanup"


def monitor(plan: str) -> str:
    return f"migration/{plan}/monitor"


def schedule(plan: str, service: str, table: str) -> str:
    """Id of the Temporal Schedule that reconciles a table."""
    return f"{plan}/{service}/{table}"
