"""quickstart_numpy: A Flower / NumPy app."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart_numpy.task import create_model

# Create ServerApp
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the ServerApp."""
    # Read run config
    num_rounds = context.run_config["num-server-rounds"]

    # Load global model
    arrays = ArrayRecord(create_model())

    # Initialize strategy
    strategy = FedAvg()

    # Start strategy for `num_rounds`
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=num_rounds)
