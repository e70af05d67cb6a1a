#!/usr/bin/env bash
# flwr 1.42.0: LocalDpMod loses every evaluation of an app that lists it as its docstring does.
#
# Its docstring says that it operates on messages of training, and lists it in ClientApp(mods=[…]).
# One expects it to pass on other messages. It looks for a model in replies to evaluation, too, and
# replaces one with metrics alone, as Flower's templates send it, by an error. In the mods of
# @app.train it leaves evaluation alone.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0

cat > "$folder/finding.py" <<'PYTHON'
import logging

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.CRITICAL)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in a ClientApp
MODEL = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(3, np.float32))})})


def train(message: Message, context: Context) -> Message:
    """Return a trained model and the number of examples."""
    arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + 1)})
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    """Return metrics alone, as Flower's templates do."""
    metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def outcome(app: ClientApp, kind: str) -> str:
    """Return what becomes of a message."""
    message = Message(MODEL, dst_node_id=1, message_type=kind)
    try:
        reply = app(message, Context(1, 1, {}, RecordDict(), {}))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"error: {reply.error.reason}" if reply.has_error() else f"a reply with {[*reply.content]}"


mod = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1.0, delta=1e-5)
as_in_its_docstring, of_training_alone = ClientApp(mods=[mod]), ClientApp()
for app, mods in (as_in_its_docstring, []), (of_training_alone, [mod]):
    app.train(mods=mods)(train)
    app.evaluate()(evaluate)
for name, app in (
    ("ClientApp(mods=[mod])", as_in_its_docstring),
    ("@app.train(mods=[mod])", of_training_alone),
):
    for kind in ("train", "evaluate"):
        print(f"{name}, {kind}: {outcome(app, kind)}")
PYTHON

cat > "$folder/seen" <<'SEEN'
ClientApp(mods=[mod]), train: a reply with ['arrays', 'metrics']
ClientApp(mods=[mod]), evaluate: error: LocalDpMod expects exactly one ArrayRecord, but found 0 ArrayRecord(s).
@app.train(mods=[mod]), train: a reply with ['arrays', 'metrics']
@app.train(mods=[mod]), evaluate: a reply with ['metrics']
SEEN

(cd "$folder" && venv/bin/python finding.py) > "$folder/printed"
diff "$folder/seen" "$folder/printed"
