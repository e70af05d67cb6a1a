"""quickstart_sklearn: A Flower / scikit-learn app."""
