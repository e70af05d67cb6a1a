"""quickstart_numpy: A Flower / NumPy app."""
