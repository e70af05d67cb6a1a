"""quickstart_torch: A Flower / PyTorch app."""
