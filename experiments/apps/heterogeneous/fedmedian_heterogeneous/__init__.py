"""A Flower app: sign and median aggregation against FedAvg on clients whose data differ."""

PROGRESS = "» "
"""The beginning of each line of progress, which sets it apart from a log's other lines."""
