"""Whatever a plan file holds, the answer is a plan or a PlanError; never another exception."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutover.errors import PlanError
from cutover.plan.explain import explain
from cutover.plan.load import examine, load_text
from cutover.plan.models import Plan

REFERENCE = (Path(__file__).parents[2] / "examples" / "ai_trader" / "plan.yaml").read_text()
LINES = REFERENCE.splitlines()
#: Pieces that mean something to YAML or to a plan.
PIECES = st.sampled_from(
    ["- ", ": ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!int ", "!x ", "|\n", ">\n", "'", '"', "# ", "? ", "---\n",
     "%YAML 1.1\n", "null", "~", "true", ".inf", ".nan", "1e400", "-1", "0x", "0o9", "_", "1:30", "2020-01-01",
     "\\0", '"\\ud800"', '"\\x00"', "\n", "\n  ", "\t", "@", "`", "14d", "5%", "services", "tables", "order",
     "migration", "\x85", "\u2028", "😀", "100", "[]", "{}"]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=200), st.lists(PIECES, max_size=40).map("".join))


def _answers(text: str) -> None:
    try:
        plan = load_text(text)
    except PlanError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(line.startswith("plan.yaml:") and "; " in line for line in lines)
    else:
        assert load_text(explain(plan)).hash == plan.hash
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
    examine(text, has_dsn=lambda name: False)


@given(TEXTS)
@settings(max_examples=120, deadline=None)
def test_any_text_is_answered(text: str) -> None:
    _answers(text)


@given(st.integers(0, len(LINES) - 1), st.integers(0, 120), st.integers(0, 20), TEXTS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_reference_plan_with_any_piece_replaced_is_answered(line: int, at: int, length: int, text: str) -> None:
    broken = LINES[line][:at] + text + LINES[line][at + length :]
    _answers("\n".join([*LINES[:line], broken, *LINES[line + 1 :]]))


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10),
        st.sampled_from(["14d", "5%", "monday 09:00", "trades", "logical", "drop"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(
            ["database", "tables", "order", "tasks", "services", "trades", "soak", "at", "steps", "every", "owner"]
        ), inner, max_size=4),
    ),
    max_leaves=12,
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from([*Plan.model_fields, "other"]), VALUES, max_size=8),
    st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_any_values_at_any_keys_are_answered(values: dict[str, object], whole: bool) -> None:
    from io import StringIO

    from ruamel.yaml import YAML

    base = {"migration": "m", "monolith": {"database": "d"}} if whole else {}
    out = StringIO()
    YAML(typ="safe", pure=True).dump({**base, **values}, out)
    _answers(out.getvalue())
