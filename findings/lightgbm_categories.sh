#!/usr/bin/env bash
# lightgbm 4.7.0: continuing a model with other categories hands what it learned to the wrong ones.
#
# Clients that train in turn pass the model on as init_model. It keeps its pandas categories, and predict()
# translates new data to them, so one expects train() to do so, too. But train() numbers the categories that
# this client has, and keeps only those. The trees for blue, green and red become trees for green, red and
# yellow. Blue, which only the first client has, is unknown afterwards. There is no warning. Give all
# clients the same pd.CategoricalDtype.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    lightgbm==4.7.0 pandas==3.1.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import lightgbm
import numpy as np
import pandas as pd

VALUES = {"blue": 10.0, "green": 20.0, "red": 30.0, "yellow": 40.0}
FIRST, SECOND = ["blue", "green", "red"], ["green", "red", "yellow"]
PARAMS = {"learning_rate": 0.5, "cat_smooth": 0, "cat_l2": 0, "num_threads": 1, "verbose": -1}
OWN, COMMON = "category", pd.CategoricalDtype([*VALUES])


def trained(
    colors: list[str], dtype: object, rounds: int, model: lightgbm.Booster | None = None
) -> lightgbm.Booster:
    """Train on 100 examples of each color, from another client's model if there is one."""
    x = pd.DataFrame({"color": pd.Series(colors * 100, dtype=dtype)})
    data = lightgbm.Dataset(x, np.array([VALUES[color] for color in colors * 100]))
    return lightgbm.train(PARAMS, data, rounds, init_model=model)


def predictions(model: lightgbm.Booster) -> dict[str, int]:
    """Return what a model predicts for each color."""
    x = pd.DataFrame({"color": pd.Series([*VALUES], dtype=COMMON)})
    return dict(zip(VALUES, model.predict(x).round().astype(int).tolist(), strict=True))


for name, dtype in (("common", COMMON), ("own", OWN)):
    first = trained(FIRST, dtype, 20)
    print(f"{name} categories, client 1: {predictions(first)}")
    for rounds in (1, 20):
        second = trained(SECOND, dtype, rounds, first)
        print(f"{name} categories, client 2 with rounds={rounds}: {predictions(second)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
common categories, client 1: {'blue': 10, 'green': 20, 'red': 30, 'yellow': 30}
common categories, client 2 with rounds=1: {'blue': 10, 'green': 20, 'red': 30, 'yellow': 35}
common categories, client 2 with rounds=20: {'blue': 10, 'green': 20, 'red': 30, 'yellow': 40}
own categories, client 1: {'blue': 10, 'green': 20, 'red': 30, 'yellow': 30}
own categories, client 2 with rounds=1: {'blue': 35, 'green': 15, 'red': 25, 'yellow': 35}
own categories, client 2 with rounds=20: {'blue': 40, 'green': 20, 'red': 30, 'yellow': 40}
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
