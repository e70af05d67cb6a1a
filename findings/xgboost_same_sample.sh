#!/usr/bin/env bash
# xgboost 3.2.0: a client that loads the server's model in each round samples the same columns in each round.
#
# A client of Flower's XGBoost quickstart makes a Booster, loads the server's model and calls update(). With
# colsample_bytree=0.5 one expects another half of the columns for each tree, as from one call of train(). But
# each new Booster starts its random numbers from the same seed, whatever model it loads. So do all clients.
# Half of the columns are never used in any round, and with subsample=0.5 half of the examples. There is no
# warning. Set seed to the number of the round.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check xgboost-cpu==3.2.0 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
import xgboost

ROUNDS = range(1, 51)
x = np.random.default_rng(0).normal(size=(400, 8))
y = x.sum(axis=1)
data = xgboost.DMatrix(x, y)


def at_once(params: dict[str, object]) -> xgboost.Booster:
    """Train all rounds in one call."""
    return xgboost.train(params, data, len(ROUNDS))


def loaded(params: dict[str, object], *, new_seeds: bool = False) -> xgboost.Booster:
    """Train each round from the bytes of the model so far, as a client does."""
    model = xgboost.train(params, data, 1).save_raw()
    for number in ROUNDS[1:]:
        booster = xgboost.Booster(params | {"seed": number} if new_seeds else params)
        booster.load_model(model)
        booster.update(data, booster.num_boosted_rounds())
        model = booster.save_raw()
    return xgboost.Booster(params, model_file=model)


def loaded_with_new_seeds(params: dict[str, object]) -> xgboost.Booster:
    """Do the same, with another seed in each round."""
    return loaded(params, new_seeds=True)


for sampling in ({"colsample_bytree": 0.5}, {"subsample": 0.5}):
    for train in (at_once, loaded, loaded_with_new_seeds):
        booster = train({"nthread": 1, "max_depth": 4} | sampling)
        error = np.sqrt(np.mean((booster.predict(data) - y) ** 2))
        columns = len(booster.get_score(importance_type="weight"))
        print(f"{sampling}, {train.__name__}: {columns} of 8 columns used, error {error:.2f}")
PYTHON

cat > "$folder/seen" <<'SEEN'
{'colsample_bytree': 0.5}, at_once: 8 of 8 columns used, error 0.16
{'colsample_bytree': 0.5}, loaded: 4 of 8 columns used, error 0.85
{'colsample_bytree': 0.5}, loaded_with_new_seeds: 8 of 8 columns used, error 0.17
{'subsample': 0.5}, at_once: 8 of 8 columns used, error 0.28
{'subsample': 0.5}, loaded: 8 of 8 columns used, error 1.10
{'subsample': 0.5}, loaded_with_new_seeds: 8 of 8 columns used, error 0.24
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
