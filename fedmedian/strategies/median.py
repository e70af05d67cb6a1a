"""Median aggregation: robust to bad clients, in full precision."""

from fedmedian.strategies.arguments import MedianArguments
from fedmedian.strategies.message_api import MessageStrategy


class MedianSGD(MedianArguments, MessageStrategy):
    """Median aggregation with noise: the coordinate-wise median of the updates Q·u_i + b·ξ_i.

    With ``rotation=None`` it is Algorithm 4 of Chen et al. (arXiv 1906.01736), and with
    ``noise=None`` also Algorithm 2, medianSGD. Rotation Q and noise move the median toward the mean
    that FedAvg takes, but it stays robust to bad clients. Clients that add noise need the mod
    `fedmedian.clients.perturb`, or are `fedmedian.clients.GradientClient`. Unmodified clients are
    enough with ``noise_at="server"``, with ``aggregator=SmoothedMedian()``, or without noise.

    All clients have the same weight, whatever their number of examples. Arguments are attributes,
    as in `SignSGD`.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(TopUp())``)
        The noise: its family, and the scale b or the rule that sets it, in units of the update. For
        a family without a scale see `SignSGD`. None for the plain median.
    aggregator : Aggregator (default: ``Median()``)
        The rule that turns updates into a direction: `Median`, a custom one, or `SmoothedMedian`,
        the limit of the noisy median when its noise averages out. With the latter neither side adds
        noise, and `noise_at` is ignored.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·median, or a schedule of it. By default 1.0, or
        the rate of `Theory` if that is the noise scale.
    noise_at : {"client", "server"} (default: "client")
        The side that adds the noise. At the server it hides nothing from the server, and clients
        need no changes.
    exact : sequence of str (default: names of normalization layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that clients send exactly, like
        all arrays of integers. The server takes their median.
    optimizer, client_steps, rotation, scale_from, downlink, cohort_rules
        As for `SignSGD`.
    diagnostics, min_replies, max_failed_rounds, checkpoint, privacy_budget, threads
        As for `SignSGD`.
    numpy_clients, seed
        As for `SignSGD`.
    **flower
        As for `SignSGD`.

    Raises
    ------
    TypeError
        If an argument has the wrong type or is unknown.
    ValueError
        If an argument is out of range, a smoothed median has no noise or uniform noise, a noise
        family or client step is not registered, or for a privacy budget as in `SignSGD`.

    Examples
    --------
    >>> strategy = MedianSGD(fraction_train=0.5)
    >>> for_unmodified_clients = MedianSGD(noise_at="server")
    """
