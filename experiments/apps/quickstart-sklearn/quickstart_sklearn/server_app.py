"""quickstart_sklearn: A Flower / scikit-learn app."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart_sklearn.task import create_model, get_model_params

# Create ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the ServerApp."""
    # Read run config
    num_rounds = context.run_config["num-server-rounds"]

    # Create the model
    model = create_model(context.run_config["local-epochs"])
    arrays = ArrayRecord(get_model_params(model))

    # Initialize strategy
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)

    # Start strategy for `num_rounds`
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=num_rounds)
