"""A Flower app: sign and median aggregation against FedAvg on clients whose data differ."""
