"""The messages every run understands, each as a signal and, under the same name, as an update.

A signal comes from a web page or the `temporal` command and gets no answer: what is refused is kept
in `status`. An update is refused before it is written to the history, or answered with a text. Both
do the same thing through `consider`, which judges without changing anything and returns the change.
"""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from workflows.messages import Action, Refusal, RefusedMessage

REFUSED_KEPT = 20


class Inbox:
    """Handlers only; `Run` says what a message means."""

    refused: list[Refusal]
    #: Whether a person may have adopted another plan: to be looked up before the next step.
    plan_news: bool

    def consider(self, action: Action, payloads: Sequence[Any]) -> Callable[[], str]:
        """What the message would do, as a function that does it and answers. Raises RefusedMessage."""
        raise NotImplementedError

    def refuse(self, action: str, text: str) -> None:
        """Keep a refused message for `status`."""
        self.refused.append(Refusal(at=workflow.now(), action=action[:40], text=text[:500]))
        del self.refused[:-REFUSED_KEPT]

    def _signal(self, action: Action, payloads: Sequence[Any]) -> None:
        try:
            change = self.consider(action, payloads)
        except RefusedMessage as refused:
            self.refuse(action, str(refused))
        else:
            change()

    def _validate(self, action: Action, payloads: Sequence[Any]) -> None:
        try:
            self.consider(action, payloads)
        except RefusedMessage as refused:
            raise ApplicationError(str(refused), type="Refused", non_retryable=True) from None

    def _update(self, action: Action, payloads: Sequence[Any]) -> str:
        self._validate(action, payloads)  # another message of the same activation may have changed the answer
        return self.consider(action, payloads)()

    @workflow.signal(name="approve")
    def signal_approve(self, *payloads: Any) -> None:
        self._signal("approve", payloads)

    @workflow.update(name="approve")
    def approve(self, *payloads: Any) -> str:
        return self._update("approve", payloads)

    @approve.validator
    def validate_approve(self, *payloads: Any) -> None:
        self._validate("approve", payloads)

    @workflow.signal(name="reject")
    def signal_reject(self, *payloads: Any) -> None:
        self._signal("reject", payloads)

    @workflow.update(name="reject")
    def reject(self, *payloads: Any) -> str:
        return self._update("reject", payloads)

    @reject.validator
    def validate_reject(self, *payloads: Any) -> None:
        self._validate("reject", payloads)

    @workflow.signal(name="pause")
    def signal_pause(self, *payloads: Any) -> None:
        self._signal("pause", payloads)

    @workflow.update(name="pause")
    def pause(self, *payloads: Any) -> str:
        return self._update("pause", payloads)

    @pause.validator
    def validate_pause(self, *payloads: Any) -> None:
        self._validate("pause", payloads)

    @workflow.signal(name="resume")
    def signal_resume(self, *payloads: Any) -> None:
        self._signal("resume", payloads)

    @workflow.update(name="resume")
    def resume(self, *payloads: Any) -> str:
        return self._update("resume", payloads)

    @resume.validator
    def validate_resume(self, *payloads: Any) -> None:
        self._validate("resume", payloads)

    @workflow.signal(name="rollback")
    def signal_rollback(self, *payloads: Any) -> None:
        self._signal("rollback", payloads)

    @workflow.update(name="rollback")
    def rollback(self, *payloads: Any) -> str:
        return self._update("rollback", payloads)

    @rollback.validator
    def validate_rollback(self, *payloads: Any) -> None:
        self._validate("rollback", payloads)

    @workflow.signal(name="retry")
    def signal_retry(self, *payloads: Any) -> None:
        self._signal("retry", payloads)

    @workflow.update(name="retry")
    def retry(self, *payloads: Any) -> str:
        return self._update("retry", payloads)

    @retry.validator
    def validate_retry(self, *payloads: Any) -> None:
        self._validate("retry", payloads)

    @workflow.signal(name="skip")
    def signal_skip(self, *payloads: Any) -> None:
        self._signal("skip", payloads)

    @workflow.update(name="skip")
    def skip(self, *payloads: Any) -> str:
        return self._update("skip", payloads)

    @skip.validator
    def validate_skip(self, *payloads: Any) -> None:
        self._validate("skip", payloads)

    @workflow.signal(name="plan_adopted", description="A person has adopted another plan; the run takes it over")
    def on_plan_adopted(self, *payloads: Any) -> None:
        """What was adopted is read from the control database, so that this message cannot say anything untrue."""
        self.plan_news = True

    @workflow.signal(dynamic=True)
    def unknown(self, name: str, payloads: Sequence[RawValue]) -> None:
        """A misspelt signal is shown instead of being kept for ever."""
        known = "approve, reject, pause, resume, rollback, retry, skip"
        self.refuse(name, f"{name[:40]!r} is no message of this run; it understands {known}")
