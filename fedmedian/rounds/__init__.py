"""The rounds of a run, free of Flower."""
