"""The activity classes and the signatures that workflows call them by are one thing."""

import inspect
from typing import Any, cast, get_type_hints

from temporalio import activity

from activities.context import Context
from activities.registration import activities_of
from activities.signatures import all_signatures
from workers.worker import activity_objects


def test_every_signature_is_implemented_once_and_with_its_types() -> None:
    found: dict[str, Any] = {}
    for method in activities_of(*activity_objects(cast(Context, None), None)):
        definition = activity._Definition.must_from_callable(method)
        assert definition.name not in found
        found[str(definition.name)] = method
    assert set(found) == set(all_signatures())
    for name, signature in all_signatures().items():
        hints = get_type_hints(inspect.unwrap(found[name]))
        returns = hints.pop("return")
        assert list(hints.values()) == [signature.takes], name
        assert returns is signature.returns, name
