"""Who a client is, as far as its noise is concerned."""

from flwr.app import Context


def partition_of(context: Context) -> int:
    """Return the client's partition, or where it has none its node id.

    Parameters
    ----------
    context : Context
        The client's context.

    Returns
    -------
    int
        A number >= 0 that no other client of the run has.
    """
    return int(context.node_config.get("partition-id", context.node_id))
