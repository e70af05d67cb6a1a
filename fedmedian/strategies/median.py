"""Median aggregation: robust to bad clients, in full precision."""

from fedmedian.strategies.arguments import MedianArguments
from fedmedian.strategies.message_api import MessageStrategy


class MedianSGD(MedianArguments, MessageStrategy):
    """Median aggregation with noise: the coordinate-wise median of the updates Q·u_i + b·ξ_i.

    With ``rotation=None`` it is Algorithm 4 of Chen et al. (arXiv 1906.01736), and with
    ``noise=None`` Algorithm 2, medianSGD. Rotation Q and noise draw the median towards the mean,
    which is where FedAvg goes, and leave it robust to bad clients. With noise the clients need
    `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`.
    With ``noise_at="server"``, with ``aggregator=SmoothedMedian()`` or without noise unmodified
    clients will do.

    Every client counts alike, whatever its number of examples. Arguments can be read as attributes,
    as those of `SignSGD`.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(TopUp())``)
        The noise: its family, and the scale b or the rule that sets it, in units of the
        update; a family without a scale has the default that `SignSGD` describes. None for the
        plain median.
    aggregator : Aggregator (default: ``Median()``)
        The rule that turns updates into a direction: `Median`, a custom one, or `SmoothedMedian`,
        the limit of the noisy median when its noise is averaged out. Nobody adds noise for that
        one, and `noise_at` plays no part.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·median, or a schedule of it. If not given it
        is 1.0, or `Theory`'s if the noise scale is.
    noise_at : {"client", "server"} (default: "client")
        The side that adds the noise. At the server it hides nothing from the server, and asks
        nothing of the clients.
    exact : sequence of str (default: names of normalisation layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that clients send exactly, to
        be replaced by their median, as arrays of integers always are.
    optimizer, client_steps, rotation, scale_from, cohort_rules
        As for `SignSGD`.
    diagnostics, min_replies, max_failed_rounds, checkpoint, privacy_budget, numpy_clients, seed
        As for `SignSGD`.
    **fedavg
        As for `SignSGD`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or is unknown.
    ValueError
        If an argument is out of range, if a smoothed median has no noise or uniform noise, if
        clients cannot know the noise family or a client step, or for a privacy budget as `SignSGD`.

    Examples
    --------
    >>> strategy = MedianSGD(fraction_train=0.5)
    >>> for_unmodified_clients = MedianSGD(noise_at="server")
    """
