"""Sign aggregation: one bit per parameter and client."""

from fedmedian.strategies.arguments import SignArguments
from fedmedian.strategies.message_api import MessageStrategy


class SignSGD(SignArguments, MessageStrategy):
    """Sign aggregation with noise: clients send sign(Q·u_i + b·ξ_i), one bit per parameter.

    With ``aggregator=Counts()`` the server estimates the mean of the clients' updates u_i from
    their votes, because it knows the noise and the rotation Q. It can replace FedAvg at a thirtieth
    of the uplink. With ``aggregator=Majority()`` and ``rotation=None`` it steps along the
    majority's sign: Algorithm 3 of Chen et al. (arXiv 1906.01736), or with ``noise=None``
    Algorithm 1, signSGD with majority vote. Clients need the mod `fedmedian.clients.perturb`, or
    are `fedmedian.clients.SignClient`.

    Each argument is an attribute of the same name; only FedAvg's can be set.

    Parameters
    ----------
    noise : Noise or None (default: ``Gaussian(TopUp())``)
        The clients' noise: its family, and the scale b or the rule that sets it, in units of
        the update. Without a scale, as in ``Gaussian()``, the default is ``TopUp()`` for Gaussian
        noise with a `rotation`, else ``Adaptive(3.0)``. None for plain signs, which `Counts`
        cannot decode.
    aggregator : Aggregator (default: ``Counts()``)
        The rule that turns signs into a direction: `Counts`, `Majority`, or a custom one.
    learning_rate : float or callable, optional
        The server's step size δ, > 0, in x ← x − δ·step, or a schedule: a callable from the
        round to δ, such as `Cosine`. By default 1.0, which moves the model by the estimated mean
        update, or 0.01 with `Adam`. An uncalibrated majority moves each coordinate by exactly δ. It
        has no default, unless the noise scale is `Theory`, which knows one.
    weighted : bool (default: True)
        Whether votes count in proportion to the clients' examples. Of M clients none counts for
        more than 1.25/M of the vote, nor for more than the (t + 1)-th largest number of examples,
        where t is a fifth of M, but at least 1 of two or more.
    optimizer : Optimizer, optional
        What turns directions into steps: `Momentum`, `Adam`, or a custom one.
    client_steps : sequence of ClientStep (default: none)
        What clients do to their update before the noise, in order: `DivideByLearningRate`,
        `ClientMomentum`, `Clip`, or custom steps, at most one of each kind.
    rotation : Rotation or None (default: ``Rotation()``)
        The rotation Q of the updates, after these steps and before the noise; the server undoes it
        on the aggregate. In a random basis, new in each round, a little noise is enough. None
        for votes on the parameters themselves, for which `Adaptive` chooses a noise scale.
    scale_from : {"server", "client"} (default: "server")
        The side that chooses the noise scale. With "client", clients receive the factor of a rule
        such as `Adaptive`, but may choose any scale. At mean weight it counts as at most four times
        the median one, and twice the (t + 1)-th largest; a heavier client's as less.
    exact : sequence of str (default: names of normalization layers' running statistics)
        Shell-style patterns of the names of floating-point arrays that clients send exactly, like
        all arrays of integers. The server averages them after clipping outliers.
    downlink : CodedSteps, optional
        How clients are sent the model. By default as a whole, 32 bits per parameter. With
        ``CodedSteps()`` clients that hold an earlier version are sent one bit per parameter; see
        `CodedSteps`.
    secure : SecureSum, optional
        Secure sums: the server learns how many clients voted +1 for each coordinate, and no single
        vote. Needs ``weighted=False``, and no `cohort_rules`. Rules such as `TopUp` that follow the
        size of updates then learn it from votes. There is no protection against hostile clients;
        see `SecureSum`.
    cohort_rules : sequence of callables (default: none)
        Rules that judge a round's usable answers together before they are aggregated. Each maps a
        `fedmedian.strategies.Cohort` to the answers to reject, by index, with the reason. The rule
        "one reply per node that was asked" always comes first.
    diagnostics : bool (default: True)
        Whether each round reports how votes agree and how much of them is noise.
    min_replies : int (default: 1)
        A round with fewer usable replies keeps the model and logs that; >= 1.
    max_failed_rounds : int or None (default: 3)
        After this many rounds in a row without a new model, or in which a dead Ray worker has lost
        most replies, ``start`` raises `RunFailedError` with the most common reason; >= 1. None for
        never. It also raises after the first round if all clients sent plain weights.
    checkpoint : Checkpoint, optional
        Where and how often the run is stored; ``start`` resumes a run that is stored there. With a
        seed, all nodes and stateless clients, the model is bit for bit that of an uninterrupted
        run. The seed and the arguments above must stay the same, except for `cohort_rules`,
        `diagnostics`, `min_replies`, `max_failed_rounds` and `threads`; a function is identified by
        its name.
    privacy_budget : PrivacyBudget, optional
        A bound on what clients' answers reveal about their updates. Clients must run a mechanism;
        see `privacy`. Each round reports ``epsilon``, and the run ends with its Result before a
        round would exceed the budget. What was spent still counts when the run resumes from a
        checkpoint or ``start`` is called again; the budget may change.
    threads : int, optional
        The number of threads that the server aggregates on, >= 1; the model does not depend on it.
        By default one for each core that the process may use, but at most 8. Models of at most
        2¹⁹ parameters, or of one array of at most 2²², take one.
    numpy_clients : bool (default: False)
        Whether the clients are NumPyClients, for training and evaluation; their metrics are
        averaged like those of a Message-API app.
    seed : int, optional
        Determines every random number of server and clients, >= 0, and the sampled nodes if
        `fraction_train` is below 1. But on Ray, Flower renames the nodes in each run. Without a
        seed, the right choice outside of simulation, noise comes from the operating system's
        entropy and the server cannot know it.
    **flower
        The arguments of `flwr.serverapp.strategy.FedAvg`: `fraction_train`,
        `fraction_evaluate`, `min_train_nodes`, `min_evaluate_nodes`, `min_available_nodes`,
        `weighted_by_key`, `arrayrecord_key`, `configrecord_key`, `train_metrics_aggr_fn`,
        `evaluate_metrics_aggr_fn`.

    Raises
    ------
    TypeError
        If an argument has the wrong type or is unknown.
    ValueError
        If an argument is out of range, the aggregator lacks noise or a learning rate that it needs,
        a noise family or client step is not registered, clients would choose a fixed scale, or
        clients run no mechanism or exceed the privacy budget in the first round.

    Examples
    --------
    >>> from fedmedian import Gaussian, Majority
    >>> strategy = SignSGD(fraction_train=0.5)
    >>> paper = SignSGD(Gaussian(0.1), Majority(), learning_rate=0.001, rotation=None)
    """
