"""Every lowering rule has a differential case. Sorted after the modules with the cases."""

from __future__ import annotations

import pytest

from nestor.frontends.torch.rules import RULES
from tests.helpers.torch_cases import SEEN


def test_every_rule_is_exercised() -> None:
    """A rule without a case is not tested; needs the cases to have run in this process."""
    if not {"aten.relu.default", "aten.cat.default", "aten.linear.default"} <= SEEN:
        pytest.skip("the cases of test_torch_ops_*.py did not run before")
    missing = sorted(set(RULES) - SEEN)
    assert not missing, f"rules without a case: {', '.join(missing)}"


def test_every_rule_names_its_source() -> None:
    """Each rule says where its operator is defined."""
    assert all(rule.source for rule in RULES.values())
