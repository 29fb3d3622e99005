"""Every workflow, and the modules that workflows share instead of running anew; for worker, tests and replay."""

from workflows.cleanup import CleanupWorkflow
from workflows.migration import MigrationWorkflow
from workflows.monitor import MonitorWorkflow
from workflows.preparation import PreparationWorkflow
from workflows.reconciliation import ReconciliationWorkflow
from workflows.replication import ReplicationWorkflow
from workflows.switchover import SwitchoverWorkflow

WORKFLOWS: list[type] = [
    MigrationWorkflow,
    PreparationWorkflow,
    ReplicationWorkflow,
    ReconciliationWorkflow,
    SwitchoverWorkflow,
    CleanupWorkflow,
    MonitorWorkflow,
]

PASSED_THROUGH = ("activities", "cutover")
