"""safetensors 0.8.0: a transposed NumPy array comes back with its entries in another order.

One expects the array that was saved, or an error as from safetensors.torch. The writer stores the
buffer as it lies in memory beside the shape of the view. Pass np.ascontiguousarray(x).
"""

# packages: safetensors==0.8.0 numpy==2.4.6
import numpy as np
from safetensors.numpy import load, save

x = np.arange(6).reshape(2, 3).T
print("saved ", x.tolist())
print("loaded", load(save({"x": x}))["x"].tolist())

# prints: saved  [[0, 3], [1, 4], [2, 5]]
# prints: loaded [[0, 1], [2, 3], [4, 5]]
