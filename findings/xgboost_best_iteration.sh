#!/usr/bin/env bash
# xgboost 3.2.0: what is trained on top of a model that stopped early is not used in predictions.
#
# predict() uses best_iteration "if the model is trained with early stopping". One expects that of client 1,
# which did, and not of client 2, which trains 50 rounds more from its model, without early stopping. But the
# Booster keeps the attribute, and fit(xgb_model=…) does not reset it. So client 2 predicts with the trees of
# client 1 alone, and its own training changes nothing, without a warning. Call
# get_booster().set_attr(best_iteration=None).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    xgboost-cpu==3.2.0 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
import xgboost

RNG = np.random.default_rng(0)


def data(examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features and a target."""
    x = RNG.normal(size=(examples, 3))
    return x, x @ [1.0, 2.0, 3.0] + RNG.normal(0.0, 0.5, examples)


first, second, test = data(100), data(2000), data(1000)


def report(client: str, model: xgboost.XGBRegressor) -> None:
    """Print the error of a client's model, and of all of its trees."""
    trees = model.get_booster().num_boosted_rounds()
    used = np.mean((model.predict(test[0]) - test[1]) ** 2)
    all_trees = np.mean((model.predict(test[0], iteration_range=(0, trees)) - test[1]) ** 2)
    print(f"  {client}: {trees} trees, error {used:.1f}, with all trees {all_trees:.1f}")


for stopping, evaluation in ((None, None), (2, [test])):
    print(f"client 1 trains with early_stopping_rounds={stopping}")
    one = xgboost.XGBRegressor(
        n_estimators=20, learning_rate=0.5, early_stopping_rounds=stopping, n_jobs=1
    )
    report("client 1", one.fit(*first, eval_set=evaluation, verbose=False))
    two = xgboost.XGBRegressor(n_estimators=50, n_jobs=1)
    report("client 2", two.fit(*second, xgb_model=one))
PYTHON

cat > "$folder/seen" <<'SEEN'
client 1 trains with early_stopping_rounds=None
  client 1: 20 trees, error 1.9, with all trees 1.9
  client 2: 70 trees, error 0.6, with all trees 0.6
client 1 trains with early_stopping_rounds=2
  client 1: 16 trees, error 1.9, with all trees 1.9
  client 2: 66 trees, error 1.9, with all trees 0.6
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
