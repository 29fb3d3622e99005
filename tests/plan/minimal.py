"""A small plan for tests, and a way to change one thing in it."""

MINIMAL = """\
migration: shop
monolith:
  database: monolith
services:
  orders:
    database: orders_db
    tables:
      orders:
        reconcile: {every: 5m, max_lag: 10m}
      items: {}
  users:
    database: users_db
    tables:
      users: {}
"""


def with_line(after: str, *lines: str) -> str:
    """The plan with lines put below the first line that reads `after`, whatever its indentation."""
    text = MINIMAL.splitlines()
    at = next(index for index, line in enumerate(text) if line.strip() == after)
    return "\n".join([*text[: at + 1], *lines, *text[at + 1 :]]) + "\n"
