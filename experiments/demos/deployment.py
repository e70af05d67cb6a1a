"""A deployment with TLS and keys, and a SuperNode that dies and returns: ``make deploy-demo``.

``python -m experiments.demos.deployment`` takes about three minutes: Flower gives a SuperNode that
has gone silent up to a minute.
"""

import argparse
import re
import time
from collections.abc import Callable

from flwr.app import UserConfig

from experiments.apps import HETEROGENEOUS
from experiments.apps.heterogeneous.fedmedian_heterogeneous import PROGRESS
from experiments.demos.deployment_runtime import SuperNode, superlink_options, write_certificates
from experiments.demos.flower_runtime import (
    FlowerError,
    FlowerRuntime,
    LoggedProcess,
    flower_runtime,
    wait_until,
)
from experiments.studies.report import report

_NUM_SUPERNODES = 3
_CONFIG: UserConfig = {
    "strategy": "sign-coded",
    "rounds": 4,
    "num-clients": _NUM_SUPERNODES,
    "partition": "dirichlet",
    "local-epochs": 20,
    "batch-size": 32,
    "learning-rate": 0.05,
}

_BEGIN = time.monotonic()
_COLORS = re.compile(r"\x1b\[\d*m")
_SHOWN = re.compile(
    rf"{PROGRESS}.*|(?:WARNING|ERROR).*|(?:configure_train|aggregate_train): .*|"
    r"\d+ of \d+ clients are sent the whole model.*|arrays sent in .*"
)


def main() -> None:
    """Deploy the app, let a SuperNode die in a round and return, and stop everything."""
    argparse.ArgumentParser(prog="python -m experiments.demos.deployment").parse_args()
    try:
        with flower_runtime() as runtime:
            _demonstrate(runtime)
    except FlowerError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit("interrupted; everything that was started has been stopped") from None
    _say("Everything that was started has been stopped.")


def _demonstrate(runtime: FlowerRuntime) -> None:
    write_certificates(runtime.home)
    port = runtime.start_superlink(*superlink_options(runtime.home), ca=runtime.home / "ca.crt")
    _say("A SuperLink with TLS and SuperNode authentication runs.")
    stranger = SuperNode(runtime, "stranger", port, 0, _NUM_SUPERNODES)
    stranger.start()
    supernodes = [
        SuperNode(runtime, f"supernode-{partition}", port, partition, _NUM_SUPERNODES)
        for partition in range(_NUM_SUPERNODES)
    ]
    for supernode in supernodes:
        supernode.register()
    _say(f"The keys of {len(supernodes)} SuperNodes are registered.")
    if stranger.is_accepted():
        raise FlowerError("a SuperNode whose key is not registered was accepted")
    _say(f"A SuperNode whose key is not registered is refused: {_refusal(stranger)}")
    for supernode in supernodes:
        supernode.start()
    for supernode in supernodes:
        if not supernode.is_accepted():
            raise FlowerError(f"a SuperNode was refused: {supernode.log}")
        _say(f"The SuperNode of partition {supernode.partition} is node {supernode.node_id}.")
    output = runtime.home / "results"
    run = runtime.submit(HETEROGENEOUS, {**_CONFIG, "output": str(output)})
    _let_die_and_return(run, supernodes[-1])
    _follow(run, lambda: not run.running, "the end of the run")
    runtime.require_completed()
    report(output)


def _let_die_and_return(run: LoggedProcess, supernode: SuperNode) -> None:
    """Kill a SuperNode while it trains for the second time, and start it until it is accepted."""
    name = f"The SuperNode of partition {supernode.partition}"
    _follow(run, lambda: supernode.trainings == 2, f"round 2 of {name}")
    lost = re.compile(rf"aggregate_train: .* node {supernode.node_id}\b")
    supernode.kill()
    _say(f"{name} has been killed (SIGKILL) while it trained.")
    while True:
        supernode.start()
        if supernode.is_accepted():
            break
        _say(f"{name} was started again and is refused: {_refusal(supernode)}")
        # Until its heartbeat has expired it is refused; and were it back before the server has
        # asked for its reply once more, the server would wait for that.
        _follow(run, lambda: lost.search(run.text) is not None, "its absence")
    _say(f"{name} was started again and is accepted: node {supernode.node_id}.")
    _follow(run, lambda: supernode.trainings == 1, f"round 3 of {name}")
    _say(f"{name} trains again.")


def _follow(run: LoggedProcess, condition: Callable[[], bool], what: str) -> None:
    """Show what a run logs until a condition holds."""

    def check() -> bool:
        holds = condition()
        for line in run.new_lines():
            if shown := _SHOWN.search(_COLORS.sub("", line)):
                _say(shown[0])
        if not holds and not run.running:
            raise FlowerError(f"the run ended before {what}:\n{run.text}")
        return holds

    wait_until(check, what)


def _refusal(supernode: SuperNode) -> str:
    found = re.search(r"\[code: \d+\].*", supernode.log)
    if not found:
        raise FlowerError(f"a SuperNode ended for another reason: {supernode.log}")
    return found[0]


def _say(text: str) -> None:
    print(f"{time.monotonic() - _BEGIN:4.0f} s  {text}", flush=True)


if __name__ == "__main__":
    main()
