"""Training: predictions agree with xgboost's own, and what can be learnt is learnt."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nestor.cost_model.dataset import Examples
from nestor.cost_model.feature_table import FEATURE_NAMES, FEATURES_VERSION
from nestor.cost_model.inputs import grouped_inputs
from nestor.cost_model.training import (
    OBJECTIVES,
    Objective,
    TrainingOptions,
    evaluate,
    group_weights,
    held_out_mask,
    leave_family_out,
    train,
)
from nestor.cost_model.trees import load_ensemble
from nestor.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

if importlib.util.find_spec("xgboost") is None:
    pytest.skip("xgboost is not installed", allow_module_level=True)

# xgboost maps an OpenMP of its own, so it never runs in this process.
COMPARE = """
import json, sys
import numpy as np, xgboost
from nestor.cost_model.trees import ensemble_from_xgboost
rng = np.random.default_rng(3)
x = rng.normal(size=(3000, 12)).astype(np.float32)
x[rng.random(x.shape) < 0.05] = np.nan
x[:, 3] = np.round(x[:, 3])
y = np.where(x[:, 0] > 0, x[:, 1] * 3, np.nan_to_num(x[:, 3]) ** 2) + np.nan_to_num(x[:, 2])
y = np.nan_to_num(y)
cut = np.unique(np.concatenate([np.nan_to_num(x[:50]).ravel()]))
for objective, depth, mean in (("reg:squarederror", 6, 0.3), ("reg:squarederror", 2, -4.0),
                               ("rank:pairwise", 5, None)):
    options = {"max_depth": depth, "objective": objective, "nthread": 1, "subsample": 0.7,
               "seed": 5}
    if mean is not None:
        options["base_score"] = mean
    data = xgboost.DMatrix(x, label=y)
    if objective.startswith("rank"):
        label = np.clip(np.round(y), 0, 31)
        data = xgboost.DMatrix(x, label=label, qid=np.repeat(np.arange(30), 100))
    b = xgboost.train(options, data, 120)
    model = json.loads(bytes(b.save_raw("json")))
    mine = ensemble_from_xgboost(model, features_version=1, names=[f"f{k}" for k in range(12)],
                                 card={})
    probe = np.concatenate([x, rng.choice(cut, size=(2000, 12)).astype(np.float32)])
    want = b.predict(xgboost.DMatrix(probe), output_margin=True)
    got = mine.predict(probe)
    scale = np.maximum(np.abs(want), 1.0)
    worst = float((np.abs(got - want) / scale).max() / np.finfo(np.float32).eps)
    print(objective, depth, len(mine.roots), worst, float(want.std()))
"""


def test_predictions_are_xgboosts_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPARE], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 3
    for _, _, trees, worst, spread in lines:
        assert int(trees) == 120
        assert float(worst) <= 1.0  # in units of the last place
        assert float(spread) > 0.5


def examples(workloads: int = 24, each: int = 40, seed: int = 0) -> Examples:
    """Fractions that follow from five features, and an offset a workload."""
    rng = np.random.default_rng(seed)
    count = workloads * each
    features = rng.random((count, len(FEATURE_NAMES))).astype(np.float32)
    groups = np.repeat(np.arange(workloads, dtype=np.int32), each)
    features[:, 9] = groups % 5  # tells workloads apart, as a kernel's own features do
    target = (
        -3 * features[:, 0]
        + np.where(features[:, 1] > 0.5, 2.0, 0.0)
        + features[:, 2] * features[:, 3]
        + 0.7 * features[:, 9]
        + 0.05 * rng.normal(size=count)
    )
    family = ("a", "b", "c")
    return Examples(
        features=features,
        target=target.astype(np.float32),
        groups=groups,
        families=tuple(family[g % 3] for g in groups),
        workloads=tuple(f"w{g}" for g in groups),
        roofline_ns=np.full(count, 1e4),
    )


QUICK = {"rounds": 120, "threads": 1, "depth": 4, "held_out": 0.25, "learning_rate": 0.15}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_can_be_learnt_is_learnt(objective: Objective, tmp_path: Path) -> None:
    model = train(examples(), TrainingOptions(objective=objective, **QUICK))  # type: ignore[arg-type]
    assert model.held_out is not None and model.held_out.spearman > 0.9
    unseen = examples(seed=1)
    scores = evaluate(model, unseen)
    assert scores.spearman > 0.9 and scores.top10 > 0.85
    if objective != "rank":
        assert scores.mape < 0.3
    model.save(tmp_path / "m")
    back = load_ensemble(tmp_path / "m")
    inputs = grouped_inputs(unseen.features, unseen.groups)
    np.testing.assert_array_equal(back.predict(inputs), model.ensemble.predict(inputs))
    card = back.card
    assert card["workloads"] == 24 and card["examples_by_family"].keys() == {"a", "b", "c"}
    assert card["held_out"]["spearman"] == pytest.approx(model.held_out.spearman)
    assert back.features_version == FEATURES_VERSION


def test_what_the_estimate_tells_is_not_left_to_trees() -> None:
    """On estimates beyond all that were seen, trees alone would stay where they ended."""
    data = examples(workloads=9)
    estimate = FEATURE_NAMES.index("estimate")
    seen, beyond = data.features.copy(), data.features.copy()
    seen[:, estimate] *= 2
    beyond[:, estimate] = 10 + 5 * beyond[:, estimate]
    known = replace(data, features=seen, target=data.target - 0.8 * seen[:, estimate])
    far = replace(data, features=beyond, target=data.target - 0.8 * beyond[:, estimate])
    options = TrainingOptions(**QUICK)  # type: ignore[arg-type]
    model = train(known, options)
    assert model.ensemble.slope == pytest.approx(-0.8, abs=0.3)
    assert evaluate(model, far).spearman > 0.9


def test_refitting_uses_all_workloads() -> None:
    data = examples(workloads=9)
    once = train(data, TrainingOptions(**QUICK))  # type: ignore[arg-type]
    again = train(data, TrainingOptions(refit=True, **QUICK))  # type: ignore[arg-type]
    assert len(again.ensemble.roots) == len(once.ensemble.roots)
    assert evaluate(again, data).mape < evaluate(once, data).mape
    assert again.held_out == once.held_out


def test_families_left_out_are_judged_unseen() -> None:
    scores = leave_family_out(examples(), TrainingOptions(**QUICK), ["b"])  # type: ignore[arg-type]
    assert set(scores) == {"b"} and set(scores["b"].by_family) == {"b"}
    assert scores["b"].spearman > 0.9


def test_whole_workloads_are_held_out_and_stay_so() -> None:
    few, many = examples(workloads=20), examples(workloads=60)
    a, b = held_out_mask(few, 0.3, 0), held_out_mask(many, 0.3, 0)
    np.testing.assert_array_equal(a, b[: len(a)])
    for w in set(many.workloads):
        chosen = {bool(x) for x, name in zip(b, many.workloads) if name == w}
        assert len(chosen) == 1
    assert 0.1 < b.mean() < 0.5
    assert not held_out_mask(few, 0.0, 0).any()


def test_workloads_weigh_alike() -> None:
    weights = group_weights(np.array([4, 4, 4, 9], np.int32))
    assert weights.mean() == pytest.approx(1)
    assert weights[:3].sum() == pytest.approx(weights[3])


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(UserError, match="no measured schedules"):
        train(examples().take(np.zeros(24 * 40, dtype=np.bool_)))


def test_training_leaves_this_process_without_xgboost() -> None:
    code = (
        "import sys, numpy as np\n"
        "import nestor.cost_model.training, nestor.cost_model.workloads\n"
        "print(sorted({'xgboost', 'torch', 'islpy', 'llvmlite'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
