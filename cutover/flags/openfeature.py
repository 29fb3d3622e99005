"""An OpenFeature provider for services in Python; needs the extra `openfeature`.

Values come from memory, so a resolution never waits. A thread of the provider's own follows the control database,
whatever event loops the service has. The states are those of the OpenFeature specification, section 2.4 and 5:

    NOT_READY   until the first values are there
    READY       values of now
    STALE       the control database does not answer: the last values stay, with the reason STALE
    ERROR       no values within `timeout` seconds after the start; READY follows once they come
    FATAL       the DSN cannot be read
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from cutover.control.database import Control
from cutover.errors import ConfigError, CutoverError, Unreachable
from cutover.flags.follower import POLL, Follower
from cutover.postgres.databases import FAILURES, Database
from cutover.settings import CONTROL, Settings

try:
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.event import ProviderEventDetails
    from openfeature.exception import (
        ErrorCode,
        FlagNotFoundError,
        ProviderFatalError,
        ProviderNotReadyError,
        TypeMismatchError,
    )
    from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
    from openfeature.provider import AbstractProvider, Metadata
except ModuleNotFoundError as error:  # pragma: no cover
    raise ImportError(
        "cutover.flags.openfeature needs the OpenFeature SDK: pip install '.[openfeature]' in cutover's checkout"
    ) from error

_log = logging.getLogger(__name__)

V = TypeVar("V", bool, int)

START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0
#: Seconds after a start that failed before READY may be said: the SDK says ERROR only once `initialize` has raised.
AFTER_ERROR = 0.5


class CutoverProvider(AbstractProvider):
    """Resolves `<service>_read_from_new`, `<service>_write_to_new_primary` and `<service>_percentage`."""

    def __init__(
        self, migration: str, control: Database | str | None = None, *, timeout: float = START_TIMEOUT
    ) -> None:
        """`control` is the control database or its DSN; `CUTOVER_DSN_CONTROL` names it otherwise.

        `timeout`: seconds for which a start waits for the first values. Raises ConfigError where no DSN is set.
        """
        super().__init__()
        self._migration = migration
        if control is None:
            control = Settings.from_environment().database(CONTROL)
        self._database = control if isinstance(control, Database) else Database(CONTROL, control)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._follower: Follower | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._stop: Callable[[], None] = lambda: None
        #: Set once there are values, or never will be.
        self._decided = threading.Event()
        self._late = False
        self._fatal = ""
        self._why = ""

    # ------------------------------------------------------------------ life

    def get_metadata(self) -> Metadata:
        return Metadata(name="cutover")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Starts to follow the flags and waits for the first values.

        Raises ProviderNotReadyError where the control database gives none in time (it is tried on), ProviderFatalError.
        """
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="cutover-flags", daemon=True)
                self._thread.start()
        self._decided.wait(self._timeout)
        with self._lock:
            if self._fatal:
                raise ProviderFatalError(self._fatal)
            if self._follower is None:
                self._late = True
                raise ProviderNotReadyError(self._why or f"no flags of {self._migration} within {self._timeout:g} s")

    def shutdown(self) -> None:
        """Ends the thread and its connections; the provider may be started again. Idempotent."""
        thread = self._thread
        self._stopping = True
        self._stop()
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_TIMEOUT)
        with self._lock:
            self._reset()

    def _work(self) -> None:
        try:
            asyncio.run(self._follow())
        except asyncio.CancelledError:
            pass
        except Exception as error:
            # its text could hold anything
            _log.error("%s: the flags are not followed any more: %s", self._migration, type(error).__name__)
            self.emit_provider_error(
                ProviderEventDetails(message="the flags are not followed any more", error_code=ErrorCode.GENERAL)
            )

    async def _follow(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)

        self._stop = stop
        if self._stopping:
            return
        control = await self._open()
        if control is None:
            return
        try:
            follower = Follower(control, self._migration, changed=self._changed, told=self._told)
            await self._first(follower)
            await follower.run()
        finally:
            await control.close()

    async def _open(self) -> Control | None:
        """Tried until it works; None for a DSN that nobody can read."""
        while True:
            try:
                return await Control.open(self._database, min_size=1, max_size=1)
            except ConfigError as error:
                self._fatal = str(error)
                self._decided.set()
                return None
            except Unreachable as error:
                self._why = str(error)
            await asyncio.sleep(POLL)

    async def _first(self, follower: Follower) -> None:
        """The first values, tried until they come."""
        while True:
            try:
                await follower.load()
                break
            except FAILURES as error:
                self._why = str(error) if isinstance(error, CutoverError) else type(error).__name__
            await asyncio.sleep(POLL)
        with self._lock:
            self._follower, late = follower, self._late
            self._decided.set()
        if late:
            await asyncio.sleep(AFTER_ERROR)
            self._told(stale=False)

    def _changed(self, names: list[str]) -> None:
        if self._follower is not None:
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=names))

    def _told(self, stale: bool) -> None:
        if stale:
            message = f"{self._migration}: the control database does not answer; the last flags stay"
            self.emit_provider_stale(ProviderEventDetails(message=message))
        else:
            self.emit_provider_ready(ProviderEventDetails())

    # ------------------------------------------------------------------ resolution

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, bool)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, int)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        raise self._mismatch(flag_key, "a float")

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        raise self._mismatch(flag_key, "a string")

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        raise self._mismatch(flag_key, "an object")

    def _resolve(self, key: str, kind: type[V]) -> FlagResolutionDetails[V]:
        """Raises ProviderNotReadyError, FlagNotFoundError, TypeMismatchError; the SDK gives the default then.

        The SDK's asynchronous calls come here too: nothing is waited for.
        """
        follower = self._known()
        flag = follower.flags.get(key)
        if flag is None:
            raise FlagNotFoundError(f"{self._migration} has no flag {key!r}")
        value = flag.value
        # not isinstance: a bool is an int to Python
        if type(value) is not kind:
            raise self._mismatch(key, "a boolean" if kind is bool else "an integer")
        reason = Reason.STALE if follower.stale else Reason.STATIC
        return FlagResolutionDetails(value, reason=reason, variant=flag.variant, flag_metadata=flag.metadata)

    def _mismatch(self, key: str, wanted: str) -> FlagNotFoundError | TypeMismatchError:
        flag = self._known().flags.get(key)
        if flag is None:
            return FlagNotFoundError(f"{self._migration} has no flag {key!r}")
        kind = "a boolean" if isinstance(flag.value, bool) else "an integer"
        return TypeMismatchError(f"{key} is {kind}, and was asked for as {wanted}")

    def _known(self) -> Follower:
        follower = self._follower
        if follower is None:
            raise ProviderNotReadyError(self._fatal or self._why or f"{self._migration}: no flags are known yet")
        return follower
