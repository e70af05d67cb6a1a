"""flwr 1.41.0: FedTrimmedAvg(beta=0.1) of fewer than ten clients is the mean.

One expects a tenth at each end to be cut, and so at least the one outlier among nine. The number of
clients is rounded down to none, without a warning, and one client decides.
"""

# packages: flwr==1.41.0
from flower_replies import replies
from flwr.serverapp.strategy import FedTrimmedAvg

for clients in (9, 10):
    values = [[1.0]] * (clients - 1) + [[1000.0]]
    arrays, _ = FedTrimmedAvg(beta=0.1).aggregate_train(1, replies(values))
    print(f"{clients} clients, one at 1000, the others at 1: {arrays['0'].numpy()[0]:.0f}")

# prints: 9 clients, one at 1000, the others at 1: 112
# prints: 10 clients, one at 1000, the others at 1: 1
