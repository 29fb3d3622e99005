"""Search attributes: the one list that workflows, `cutover setup` and the development stack register from."""

from temporalio.common import SearchAttributeKey

MIGRATION = SearchAttributeKey.for_keyword("CutoverMigration")
SERVICE = SearchAttributeKey.for_keyword("CutoverService")
PHASE = SearchAttributeKey.for_keyword("CutoverPhase")
STATE = SearchAttributeKey.for_keyword("CutoverState")
WAITING_FOR = SearchAttributeKey.for_keyword("CutoverWaitingFor")

ALL = (MIGRATION, SERVICE, PHASE, STATE, WAITING_FOR)

#: Longest value: a keyword is limited by the visibility store (MySQL: 255 characters).
LIMIT = 250
