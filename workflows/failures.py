"""What goes wrong inside a run, unwrapped to its root cause and cut to a readable length."""

from temporalio.exceptions import ActivityError, ApplicationError, TimeoutError, TimeoutType

from workflows.messages import Message, PastApproval
from workflows.timeouts import TEXT_LIMIT, TRANSIENT

#: `kind` of a step that was refused because a person has adopted another plan.
PLAN_REPLACED = "PlanReplaced"
#: Approvals that no longer hold at the flip (`cutover.errors.ApprovalLapsed`).
APPROVAL_LAPSED = "ApprovalLapsed"


class StepFailed(Exception):
    """An activity failed for good: `kind` is the error's class name, `text` its words."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class Rejected(Exception):
    """A person rejected at a gate."""

    def __init__(self, rejection: PastApproval) -> None:
        reason = f": {rejection.reason}" if rejection.reason else ""
        self.text = f"rejected by {rejection.by}{reason}"
        super().__init__(self.text)


class RollbackRequested(Exception):
    """A person asked for the way back; raised at the next place where the run waits."""

    def __init__(self, message: Message) -> None:
        super().__init__("rollback requested")
        self.message = message


class StartOver(Exception):
    """Another plan was taken over, and what was done by the former one has to be looked through again."""


def explain(error: BaseException) -> tuple[str, str]:
    """Class name and words of the root cause."""
    root: BaseException = error
    while isinstance(root, ActivityError) and root.cause is not None:
        root = root.cause
    if isinstance(root, TimeoutError):
        what = {
            TimeoutType.HEARTBEAT: "the worker that ran it stopped answering",
            TimeoutType.START_TO_CLOSE: "it took longer than it may",
        }.get(root.type or TimeoutType.START_TO_CLOSE, "no worker took it")
        return "Timeout", f"{error.activity_type}: {what}" if isinstance(error, ActivityError) else what
    if isinstance(root, ApplicationError):
        return root.type or "ApplicationError", root.message[:TEXT_LIMIT]
    return type(root).__name__, str(root)[:TEXT_LIMIT]


def is_transient(kind: str, error: ActivityError, round_number: int) -> bool:
    """Whether waiting helps. An unknown error has had its attempts in the first round."""
    cause = error.cause
    if isinstance(cause, TimeoutError):
        return True
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        return False
    return kind in TRANSIENT
