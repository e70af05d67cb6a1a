"""A strategy of a user's own around another, as Flower's wrappers are."""

from flwr.serverapp.strategy import Strategy


class Wrapped(Strategy):
    """Drives the rounds by its own ``start``, and passes all else on."""

    def __init__(self, inner):
        self.inner = inner

    def configure_train(self, *args):
        return self.inner.configure_train(*args)

    def aggregate_train(self, server_round, replies):
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(self, *args):
        return self.inner.configure_evaluate(*args)

    def aggregate_evaluate(self, *args):
        return self.inner.aggregate_evaluate(*args)

    def summary(self):
        self.inner.summary()
