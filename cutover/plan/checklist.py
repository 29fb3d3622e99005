"""The task lists and checklists of the migration strategy, as data.

*automatic* items are done or checked by the programme, which leaves evidence for each; *human* items
become the plan's default tasks and wait for the person who confirms them. Owners and durations of the
task lists are the strategy's own; the checklists name none, so those are defaults of this project.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from cutover.plan.durations import format_duration

Kind = Literal["automatic", "human"]
PLATFORM, BACKEND, EVERYBODY = "platform-team", "backend-team", "all-teams"


@dataclass(frozen=True)
class Item:
    """One line of a list: `text` is the strategy's, `evidence` what shows that it is done."""

    key: str
    text: str
    phase: Literal["preparation", "dual_write", "switchover", "cleanup"]
    owner: str
    duration: timedelta
    kind: Kind
    evidence: str
    #: An automatic item that is checked for every service by itself.
    each_service: bool = False


def _days(count: float) -> timedelta:
    return timedelta(days=count)


ITEMS: tuple[Item, ...] = (
    # Task list of phase 1
    Item("service_schemas", "Create service database schemas", "preparation", PLATFORM, _days(2), "automatic",
         "every table of the plan exists in its service's database"),
    Item("dual_write_repository", "Implement DualWriteRepository", "preparation", BACKEND, _days(3), "human",
         "the services use cutover.dualwrite for every table of the plan"),
    Item("reconciliation_dashboard", "Build reconciliation dashboard", "preparation", PLATFORM, _days(2), "automatic",
         "a report is written to the control database and read back (and taken back)"),
    Item("cdc_pipeline", "Set up CDC pipeline (Debezium)", "dual_write", PLATFORM, _days(3), "automatic",
         "the plan's stream of each service carries a marker to its database", each_service=True),
    Item("data_validation_scripts", "Create data validation scripts", "dual_write", BACKEND, _days(2), "automatic",
         "a complete pass over each table, by the plan in force", each_service=True),
    # Verification checklist of phase 1
    Item("schemas_match_source", "All service schemas created and match source", "preparation", PLATFORM, _days(1),
         "automatic", "both catalogs compared, and the fingerprints that gates compare with taken"),
    Item("dual_write_tested_in_staging", "Dual-write proxy tested in staging", "preparation", BACKEND, _days(3),
         "human", "a rehearsal with this plan in staging"),
    Item("cdc_replicating_correctly", "CDC pipeline replicating correctly", "dual_write", PLATFORM, _days(1),
         "automatic", "the stream is healthy, a marker arrives, and no apply error comes meanwhile", each_service=True),
    Item("dashboard_operational", "Reconciliation dashboard operational", "dual_write", PLATFORM, _days(1),
         "automatic", "a complete report of each table, not later than its cadence and the limit of the lag",
         each_service=True),
    Item("rollback_documented", "Rollback procedures documented", "preparation", BACKEND, _days(1), "human",
         "where the team finds the procedure"),
    # Pre-migration checklist
    Item("backup_completed", "Full database backup completed", "preparation", PLATFORM, _days(1), "human",
         "which backup it is, and its restore test"),
    Item("point_in_time_recovery_tested", "Point-in-time recovery tested", "preparation", PLATFORM, _days(1), "human",
         "the time recovered to, and how long it took"),
    Item("rollback_tested", "Rollback procedure documented and tested", "preparation", BACKEND, _days(1), "human",
         "a rehearsed rollback"),
    Item("team_trained", "Team trained on migration procedures", "preparation", EVERYBODY, _days(1), "human",
         "who was trained"),
    Item("monitoring_dashboards_ready", "Monitoring dashboards ready", "preparation", PLATFORM, _days(1), "human",
         "where the dashboards are"),
    Item("on_call_confirmed", "On-call schedule confirmed", "preparation", PLATFORM, _days(1), "human",
         "the schedule of the weeks of the migration"),
    Item("communication_plan", "Communication plan for incidents", "preparation", EVERYBODY, _days(1), "human",
         "who tells whom, and how"),
    # During migration
    Item("error_rates_monitored", "Monitor error rates continuously", "switchover", PLATFORM, _days(1), "automatic",
         "30 samples or more in the soak without a hole of a sixth of it (5m at least), and one just now",
         each_service=True),
    Item("hourly_consistency_reports", "Check consistency reports every hour", "switchover", PLATFORM, _days(1),
         "automatic", "a summary row since the switch, the newest not older than two hours", each_service=True),
    Item("rollback_command_ready", "Have rollback command ready", "switchover", PLATFORM, _days(1), "automatic",
         "the reverse stream carries a marker back to the monolith; the command", each_service=True),
    Item("deployments_limited", "Limit other deployments during migration", "dual_write", EVERYBODY, _days(1),
         "human", "the freeze that was agreed"),
    Item("stakeholders_informed", "Keep stakeholders informed", "dual_write", EVERYBODY, _days(1), "human",
         "the announcement of the switch days"),
    # Task list of phase 4
    Item("dual_write_disabled", "Disable dual-write proxies", "cleanup", BACKEND, _days(1), "automatic",
         "no stream, slot, origin, fence or queue of ours is left at the service's side", each_service=True),
    Item("legacy_repositories_removed", "Remove legacy repository implementations", "cleanup", BACKEND, _days(2),
         "human", "the change that removed them"),
    Item("tables_archived", "Archive monolith tables", "cleanup", PLATFORM, _days(1), "automatic",
         "manifest with row counts and checksums, verified, and its restore test", each_service=True),
    Item("documentation_updated", "Update documentation", "cleanup", EVERYBODY, _days(1), "human",
         "what was updated"),
    # Post-migration checklist
    Item("data_verified", "Verify all data migrated correctly", "cleanup", PLATFORM, _days(1), "automatic",
         "zero confirmed differences in the newest complete report of every table"),
    Item("full_reconciliation", "Run full reconciliation report", "cleanup", PLATFORM, _days(1), "automatic",
         "a full pass over every table just before the way back is given up, from the service's side"),
    Item("benchmarks_match_baseline", "Performance benchmarks match baseline", "cleanup", PLATFORM, _days(1),
         "automatic", "write latency of each service against its recorded baseline, within the threshold"),
    Item("feature_flags_removed", "Remove feature flags after stable period", "cleanup", BACKEND, _days(1),
         "automatic", "no flag of the migration is left, and every service's last route is its own database"),
    Item("lessons_learned", "Document lessons learned", "cleanup", EVERYBODY, _days(1), "human",
         "where they are written"),
)  # fmt: skip


def items(phase: str, kind: Kind | None = None) -> list[Item]:
    """The items of a phase, in the order of the strategy; of one kind, if given."""
    return [item for item in ITEMS if item.phase == phase and kind in (None, item.kind)]


def automatic() -> list[Item]:
    """Every item that a check answers."""
    return [item for item in ITEMS if item.kind == "automatic"]


def automatic_keys() -> frozenset[str]:
    """The names that a plan's own tasks may not take: the programme answers for these."""
    return frozenset(item.key for item in automatic())


def default_tasks() -> dict[str, dict[str, str]]:
    """The human items in the form of a plan's `tasks`."""
    return {
        item.key: {
            "owner": item.owner,
            "duration": format_duration(item.duration),
            "phase": item.phase,
            "description": item.text,
        }
        for item in ITEMS
        if item.kind == "human"
    }
