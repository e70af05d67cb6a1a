"""How scalars and arrays travel between server and clients."""
