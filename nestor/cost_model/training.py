"""Fit ensembles of trees to measured schedules. The only place that uses xgboost.

xgboost maps an OpenMP of its own into its process, next to the one that kernels run on, so it runs
in a fresh interpreter (``python -m nestor.cost_model.training``): arrays go in and trees come out,
as files. What is fitted is ``log2`` of the fraction of the roofline that a schedule reaches. A
search asks which of a workload's schedules are best, so three objectives may be chosen:

* ``regression``: squared errors;
* ``combined``: squared errors, of which the part that all schedules of a workload have in common
  counts less, so that trees are spent on what tells schedules of one workload apart, and the
  prediction remains one of time;
* ``rank``: xgboost's pairwise ranking; its predictions are ranks, not times.

The first two start from the analytical estimate, which is one of the features, times the slope that
fits best within workloads, and fit trees to what it leaves over: where measured kernels are few,
the estimate is what carries over to others.

Each workload counts alike however many schedules of it there are and however far they lie apart
(``spread``), and boosting stops when held-out workloads no longer gain.

Source: Chen, Guestrin, XGBoost, KDD 2016; Burges, From RankNet to LambdaMART, 2010.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestor.cost_model.dataset import Examples
from nestor.cost_model.feature_table import FEATURE_NAMES, FEATURES_VERSION
from nestor.cost_model.inputs import INPUT_NAMES, grouped_inputs
from nestor.cost_model.scores import Scores, group_positions, score_predictions, spearman
from nestor.cost_model.trees import (
    TreeEnsemble,
    average_ensembles,
    ensemble_from_bytes,
    ensemble_from_xgboost,
)
from nestor.errors import NestorError, UserError

Objective = Literal["regression", "combined", "rank"]
START = FEATURE_NAMES.index("estimate")
_LEAST_SPREAD = 0.05
"""Schedules whose times differ by less than this [log2] differ by what measurements do."""

OBJECTIVES: tuple[Objective, ...] = ("regression", "combined", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to fit.

    Attributes:
        objective: see the module.
        common_weight: what the part of the errors that a workload's schedules share counts, under
            ``combined``.
        spread: power of a workload's spread of times (the standard deviation of their logarithms)
            that its weight is divided by: at 0, workloads with few equal schedules decide alone.
        rounds: most trees. patience: rounds without a gain on held-out workloads before the end.
        members: ensembles, of different seeds, whose mean is taken.
        depth, learning_rate, rows, columns, l2, leaf_weight: as xgboost's ``max_depth``, ``eta``,
            ``subsample``, ``colsample_bynode``, ``lambda``, ``min_child_weight``.
        held_out: share of the workloads of each family that is held out.
        refit: fit once more to all workloads, with as many trees as were best; the card then still
            gives the errors on workloads held out before.
        threads: for xgboost. seed: of sampling and of what is held out.
        limit_s: wall-clock time for the whole fit [s].
    """

    objective: Objective = "combined"
    common_weight: float = 0.1
    spread: float = 1.0
    rounds: int = 300
    patience: int = 100
    depth: int = 6
    members: int = 3
    learning_rate: float = 0.08
    rows: float = 0.8
    columns: float = 0.5
    l2: float = 2.0
    leaf_weight: float = 1.0
    held_out: float = 0.15
    refit: bool = False
    threads: int = 2
    seed: int = 0
    limit_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """An ensemble, and its scores on the workloads that were held out (None if there were none)."""

    ensemble: TreeEnsemble
    held_out: Scores | None

    def save(self, path: Path) -> None:
        """Write the ensemble with its card."""
        self.ensemble.save(path)


def train(examples: Examples, options: TrainingOptions = TrainingOptions()) -> TrainedModel:
    """Fit an ensemble.

    Raises: ``UserError`` if there is nothing to fit to, or xgboost is missing, or time runs out.
    """
    if len(examples) < 2:
        raise UserError("there are no measured schedules to train on")
    if examples.features_version != FEATURES_VERSION:
        raise UserError(
            f"examples of features version {examples.features_version}; this is {FEATURES_VERSION}"
        )
    held = held_out_mask(examples, options.held_out, options.seed)
    ensemble = _fit_apart(examples, held, options)
    scores = evaluate(ensemble, examples.take(held)) if held.any() else None
    card = _card(examples, held, options, scores, len(ensemble.roots))
    if options.refit and held.any():
        rounds = max(1, len(ensemble.roots) // options.members)
        ensemble = _fit_apart(examples, np.zeros_like(held), replace(options, rounds=rounds))
    return TrainedModel(ensemble=replace(ensemble, card=card), held_out=scores)


def evaluate(model: TreeEnsemble | TrainedModel, examples: Examples) -> Scores:
    """Scores of a model on examples. Raises: ``UserError`` if it is for other features."""
    ensemble = model.ensemble if isinstance(model, TrainedModel) else model
    if ensemble.features_version != examples.features_version:
        raise UserError(
            f"the model is for features version {ensemble.features_version}, "
            f"the examples have {examples.features_version}"
        )
    predicted = ensemble.predict(grouped_inputs(examples.features, examples.groups))
    return score_predictions(predicted, examples.target, examples.groups, examples.families)


def leave_family_out(
    examples: Examples,
    options: TrainingOptions = TrainingOptions(),
    families: Sequence[str] | None = None,
) -> dict[str, Scores]:
    """For each family the scores of a model that has seen all others but not it."""
    out: dict[str, Scores] = {}
    named = np.array(examples.families)
    for family in families or sorted(set(examples.families)):
        left = named == family
        if left.any() and not left.all():
            out[family] = evaluate(
                train(examples.take(~left), replace(options, refit=False)), examples.take(left)
            )
    return out


def held_out_mask(examples: Examples, share: float, seed: int) -> NDArray[np.bool_]:
    """Which examples to hold out: about ``share`` of each family's workloads, all of their samples.

    Which ones follows from the workloads' ids, so that more data moves none of them.
    """
    wanted = {w for w in set(examples.workloads) if _draw(f"{seed}/{w}") < share}
    if not wanted and share > 0 and len(set(examples.workloads)) > 1:
        wanted = {min(set(examples.workloads), key=lambda w: _draw(f"{seed}/{w}"))}
    return np.array([w in wanted for w in examples.workloads], dtype=np.bool_)


def _draw(text: str) -> float:
    """A number in [0, 1) that follows from the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2.0**48


def group_weights(
    groups: NDArray[np.int32], target: NDArray[np.float32] | None = None, spread: float = 0.0
) -> NDArray[np.float32]:
    """Weights that make each group count alike, 1 on average.

    Args: target, spread: divide a group's weight by this power of its targets' standard deviation.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    weights = 1.0 / counts[inverse]
    if target is not None and spread:
        own = np.ones(len(counts))
        for k, at in enumerate(group_positions(groups)):
            own[k] = max(_LEAST_SPREAD, float(target[at].std()))
        weights = weights / own[inverse] ** spread
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def _card(
    examples: Examples,
    held: NDArray[np.bool_],
    options: TrainingOptions,
    scores: Scores | None,
    trees: int,
) -> dict[str, Any]:
    families = {f: examples.families.count(f) for f in sorted(set(examples.families))}
    return {
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "examples": len(examples),
        "held_out_examples": int(held.sum()),
        "workloads": len(set(examples.workloads)),
        "examples_by_family": families,
        "features_version": examples.features_version,
        "trees": trees,
        "options": asdict(options),
        "held_out": None if scores is None else scores.to_json(),
    }


# ------------------------------------------------------------------------- the other process


def _fit_apart(
    examples: Examples, held: NDArray[np.bool_], options: TrainingOptions
) -> TreeEnsemble:
    """Fit in a fresh interpreter."""
    with tempfile.TemporaryDirectory(prefix="nestor-train-") as folder:
        job, result = Path(folder, "job.npz"), Path(folder, "trees.bin")
        np.savez(
            job,
            features=grouped_inputs(examples.features, examples.groups),
            target=examples.target,
            groups=examples.groups,
            held=held,
            options=np.frombuffer(json.dumps(asdict(options)).encode(), dtype=np.uint8),
        )
        command = [sys.executable, "-m", "nestor.cost_model.training", str(job), str(result)]
        root = str(Path(__file__).resolve().parents[2])
        try:
            done = subprocess.run(
                command, cwd=root, capture_output=True, text=True, timeout=options.limit_s
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"training took more than {options.limit_s:.0f} s") from error
        if done.returncode or not result.exists():
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise UserError(f"training failed: {lines[-1]}")
        return ensemble_from_bytes(result.read_bytes(), "trained model")


def _run_job(job: Path, result: Path) -> None:
    """Read a job, fit, write the trees. Runs in a process of its own."""
    with np.load(job, allow_pickle=False) as data:
        options = TrainingOptions(**json.loads(data["options"].tobytes()))
        given = (data["features"], data["target"], data["groups"], data["held"])
        seeds = range(options.seed, options.seed + options.members)
        made = [_Fit(*given, replace(options, seed=seed)).ensemble() for seed in seeds]
    result.write_bytes(average_ensembles(made).to_bytes())


class _Fit:
    """One call of xgboost."""

    def __init__(
        self,
        features: NDArray[np.float32],
        target: NDArray[np.float32],
        groups: NDArray[np.int32],
        held: NDArray[np.bool_],
        options: TrainingOptions,
    ):
        self.options = options
        # Ranking takes each group's rows together.
        order = np.argsort(groups, kind="stable")
        self.features, self.groups, self.held = features[order], groups[order], held[order]
        self.measured = target[order]
        self.estimate = self.features[:, START]
        is_rank = options.objective == "rank"
        self.slope = 0.0 if is_rank else self._fit_slope(~self.held)
        self.target = self.measured - np.float32(self.slope) * self.estimate

    def _fit_slope(self, seen: NDArray[np.bool_]) -> float:
        """Least squares of targets over estimates, both without their mean over a workload."""
        groups, y, x = self.groups[seen], self.measured[seen], self.estimate[seen]
        weights = group_weights(groups, y, self.options.spread)
        over = under = 0.0
        for at in group_positions(groups):
            a, b = x[at] - x[at].mean(), y[at] - y[at].mean()
            over += float((weights[at] * a * b).sum())
            under += float((weights[at] * a * a).sum())
        return float(np.float32(over / under)) if under > 0 else 0.0

    def ensemble(self) -> TreeEnsemble:
        """The fitted trees, and what they start from."""
        try:
            import xgboost
        except ImportError as error:
            raise NestorError("xgboost is not installed: pip install xgboost") from error
        options, seen = self.options, ~self.held
        own = self._matrix(xgboost, seen)
        evals = [(self._matrix(xgboost, self.held), "held_out")] if self.held.any() else []
        is_rank = options.objective == "rank"
        booster = xgboost.train(
            self._parameters(float(self.target[seen].mean())),
            own,
            num_boost_round=options.rounds,
            obj=None if is_rank else self._combined(seen),
            custom_metric=self._metric() if evals else None,
            evals=evals,
            early_stopping_rounds=options.patience if evals else None,
            verbose_eval=False,
        )
        model = json.loads(bytes(booster.save_raw("json")))
        trees = ensemble_from_xgboost(
            model, features_version=FEATURES_VERSION, names=INPUT_NAMES, card={}
        )
        return replace(trees, start=START, slope=self.slope)

    def _parameters(self, mean: float) -> dict[str, Any]:
        o = self.options
        common = {
            "max_depth": o.depth,
            "eta": o.learning_rate,
            "subsample": o.rows,
            "colsample_bynode": o.columns,
            "lambda": o.l2,
            "min_child_weight": o.leaf_weight,
            "tree_method": "hist",
            "nthread": o.threads,
            "seed": o.seed,
            "disable_default_eval_metric": True,
        }
        if o.objective == "rank":
            return {**common, "objective": "rank:pairwise", "lambdarank_num_pair_per_sample": 8}
        return {**common, "objective": "reg:squarederror", "base_score": mean}

    def _matrix(self, xgboost: Any, chosen: NDArray[np.bool_]) -> Any:
        groups, target = self.groups[chosen], self.target[chosen]
        if self.options.objective != "rank":
            weight = self._weights(chosen)
            return xgboost.DMatrix(self.features[chosen], label=target, weight=weight)
        labels = np.zeros(len(target), dtype=np.float32)
        for at in group_positions(groups):
            place = np.argsort(np.argsort(target[at]))
            labels[at] = np.floor(31 * place / max(1, len(at) - 1))
        return xgboost.DMatrix(self.features[chosen], label=labels, qid=groups)

    def _combined(self, seen: NDArray[np.bool_]) -> Any:
        """Gradient and curvature of squared errors, a group's common part weighted apart.

        With errors r and their mean m over a group of n: ½Σ(r - m)² + ½ c n m², c the weight of
        the common part; its gradient is (r - m) + c m.
        """
        options = self.options
        share = 1.0 if options.objective == "regression" else options.common_weight
        target = self.target[seen].astype(np.float64)
        weights = self._weights(seen)
        _, group = np.unique(self.groups[seen], return_inverse=True)
        group = group.reshape(-1)
        counts = np.bincount(group)

        def objective(predicted: Any, _matrix: Any) -> tuple[Any, Any]:
            error = np.asarray(predicted, dtype=np.float64) - target
            mean = (np.bincount(group, weights=error) / counts)[group]
            gradient = (error - mean) + share * mean
            return (gradient * weights).astype(np.float32), weights

        return objective

    def _weights(self, chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        return group_weights(self.groups[chosen], self.measured[chosen], self.options.spread)

    def _metric(self) -> Any:
        """What early stopping watches on held-out workloads: ranks first, then errors."""
        target, groups = self.measured[self.held], self.groups[self.held]
        start = self.slope * self.estimate[self.held].astype(np.float64)
        places = list(group_positions(groups))
        weights = group_weights(groups)
        share = 0.0 if self.options.objective == "rank" else 0.1

        def metric(predicted: Any, _matrix: Any) -> tuple[str, float]:
            p = np.asarray(predicted, dtype=np.float64) + start
            rank = np.mean([1 - spearman(p[at], target[at]) for at in places if len(at) > 1] or [0])
            error = np.sqrt(np.mean(weights * (p - target) ** 2))
            return "loss", float(rank + share * error)

        return metric


if __name__ == "__main__":
    _run_job(Path(sys.argv[1]), Path(sys.argv[2]))
