"""quickstart_sklearn: A Flower / scikit-learn app."""

import warnings

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from quickstart_sklearn.task import (
    LABELS,
    create_model,
    fit,
    get_model_params,
    load_data,
    set_model_params,
)

# Flower ClientApp
app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    # Create the model and set the parameters received
    model = create_model(context.run_config["local-epochs"])
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    X_train, y_train, _, _ = load_data(partition_id, num_partitions)

    # Train; that few local epochs do not converge is as intended
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(model, X_train, y_train)
    train_logloss = log_loss(y_train, model.predict_proba(X_train), labels=LABELS)

    # Construct and return the reply
    model_record = ArrayRecord(get_model_params(model))
    metrics = {"num-examples": len(X_train), "train_logloss": train_logloss}
    content = RecordDict({"arrays": model_record, "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Evaluate the model on local data."""
    # Create the model and set the parameters received
    model = create_model(context.run_config["local-epochs"])
    set_model_params(model, msg.content["arrays"].to_numpy_ndarrays())

    # Load the data
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    _, _, X_test, y_test = load_data(partition_id, num_partitions)

    # Evaluate
    loss = log_loss(y_test, model.predict_proba(X_test), labels=LABELS)
    accuracy = model.score(X_test, y_test)

    # Construct and return the reply
    metrics = {"num-examples": len(X_test), "test_logloss": loss, "accuracy": accuracy}
    content = RecordDict({"metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
