"""flwr 1.41.0: FedAdam returns float64 for a float32 model.

FedAvg keeps float32, so one expects FedAdam to keep it. From round 1 on the model has twice the
size, on the way down as well.
"""

# packages: flwr==1.41.0
import numpy as np
from flower_replies import replies
from flwr.serverapp.strategy import FedAdam, FedAvg

for strategy in (FedAvg(), FedAdam()):
    strategy.current_arrays = {"0": np.zeros(3, np.float32)}  # as configure_train leaves it
    arrays, _ = strategy.aggregate_train(1, replies([[1.0, 2.0, 3.0]] * 3))
    print(type(strategy).__name__, arrays["0"].numpy().dtype)

# prints: FedAvg float32
# prints: FedAdam float64
