#!/usr/bin/env bash
# scikit-learn 1.9.1: SGDClassifier(average=True).partial_fit ignores the coef_ that it was given.
#
# A client of federated averaging sets coef_ and intercept_ to the server's model and calls partial_fit,
# and one expects it to train from there. With average=False it does. With average=True coef_ holds only
# the averages: predict() uses what was assigned, and partial_fit goes on from weights kept elsewhere. So
# the server's model looks well received, and each client trains alone, without an error. Pass the model
# to fit(coef_init=…, intercept_init=…) with max_iter=1.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6

cat > "$folder/finding.py" <<'PYTHON'
import numpy as np
from sklearn.linear_model import SGDClassifier

x = np.random.default_rng(0).normal(size=(200, 2))
y = x @ [1.0, 2.0] > 0
first, second = (x[:100], y[:100]), (x[100:], y[100:])


def client(average: bool) -> SGDClassifier:
    """Return a client's model after a round of its own."""
    model = SGDClassifier(
        average=average, learning_rate="constant", eta0=0.001, max_iter=1, tol=None, random_state=0
    )
    return model.partial_fit(*first, classes=[False, True])


def assigned(model: SGDClassifier, server: float) -> SGDClassifier:
    """Train a round from the server's model, as an attribute."""
    model.coef_, model.intercept_ = np.full((1, 2), server), np.zeros(1)
    return model.partial_fit(*second)


def passed(model: SGDClassifier, server: float) -> SGDClassifier:
    """Train a round from the server's model, as an argument."""
    return model.fit(*second, coef_init=np.full((1, 2), server), intercept_init=np.zeros(1))


for way, average in ((assigned, False), (assigned, True), (passed, True)):
    for server in (0.0, 5.0):
        coef = way(client(average), server).coef_[0]
        print(
            f"average={average}, {way.__name__} [{server}, {server}]: "
            f"trained to [{coef[0]:.2f}, {coef[1]:.2f}]"
        )
PYTHON

cat > "$folder/seen" <<'SEEN'
average=False, assigned [0.0, 0.0]: trained to [0.03, 0.08]
average=False, assigned [5.0, 5.0]: trained to [4.98, 5.01]
average=True, assigned [0.0, 0.0]: trained to [0.04, 0.07]
average=True, assigned [5.0, 5.0]: trained to [0.04, 0.07]
average=True, passed [0.0, 0.0]: trained to [0.01, 0.04]
average=True, passed [5.0, 5.0]: trained to [4.99, 5.01]
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
