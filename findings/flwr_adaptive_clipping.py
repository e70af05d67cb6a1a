"""flwr 1.41.0: adaptive clipping moves away from its quantile.

With target_clipped_quantile=0.5 one expects the clipping norm to rise while all updates are longer
than it, and to fall while all are shorter, until half of them are clipped. It does the reverse: it
counts the clipped updates where the paper that it cites (Andrew et al.) counts those that are not,
and keeps the sign of the step.
"""

# packages: flwr==1.41.0
import numpy as np
from flower_replies import replies
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg

for length in (10.0, 0.1):
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), noise_multiplier=0.0, num_sampled_clients=10, initial_clipping_norm=1.0
    )
    strategy.current_arrays = ArrayRecord([np.zeros(1, np.float32)])
    for number in range(1, 6):
        strategy.aggregate_train(number, replies([[length]] * 10))
    print(f"updates of norm {length}: clipping norm 1.0 becomes {strategy.clipping_norm:.2f}")

# prints: updates of norm 10.0: clipping norm 1.0 becomes 0.61
# prints: updates of norm 0.1: clipping norm 1.0 becomes 1.65
