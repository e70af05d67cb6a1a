"""NumPyClients for torch models that send perturbed signs or perturbed updates."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from fedmedian.checks import require_integer, require_type
from fedmedian.clients.answering import answer
from fedmedian.clients.policy import require_enforcement
from fedmedian.model.blocks import Part, Read
from fedmedian.model.layout import Arrays, Layout
from fedmedian.steps.instruction import Instruction
from fedmedian.wire.npy import as_numbers, bfloat16
from fedmedian.wire.scalars import Float32, WireError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps a batch of outputs and of targets to the mean loss over the batch."""

Batches = DataLoader[Any]

LocalWork = Callable[[nn.Module, Batches, Loss], dict[str, Tensor]]
"""A client's work in one round, from the received model to the update.

It takes the server's model, whose buffers keep the values from training, the client's data and the
loss. It returns the update of each parameter by name, pointing uphill: the gradient, or the
parameter before training minus the one after it. Arrays that it leaves out, such as buffers, move
as training has moved them.
"""


@dataclass(frozen=True)
class FullBatchGradient:
    """The gradient of the mean loss over all of the client's examples: g_i of the paper."""

    def __call__(self, model: nn.Module, batches: Batches, loss: Loss) -> dict[str, Tensor]:
        """Return the gradient of each parameter; see `LocalWork`."""
        examples = _num_examples(batches)
        model.zero_grad()
        for inputs, targets in batches:
            _backward(loss(model(inputs), targets) * (len(targets) / examples))
        return _gradients(model)


@dataclass(frozen=True)
class MiniBatchGradient:
    """The gradient of the mean loss over the first batch that the data loader yields."""

    def __call__(self, model: nn.Module, batches: Batches, loss: Loss) -> dict[str, Tensor]:
        """Return the gradient of each parameter; see `LocalWork`."""
        inputs, targets = next(iter(batches))
        model.zero_grad()
        _backward(loss(model(inputs), targets))
        return _gradients(model)


@dataclass(frozen=True)
class LocalEpochs:
    """Local training as in FedAvg; the update is x − x_i.

    Parameters
    ----------
    optimizer : callable
        Maps the model's parameters to a new torch optimizer, such as
        ``functools.partial(torch.optim.SGD, lr=0.05)``.
    epochs : int (default: 1)
        Passes over the client's data per round, >= 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    epochs: int = 1

    def __post_init__(self) -> None:
        if not callable(self.optimizer):
            raise TypeError(f"optimizer must be callable, got {self.optimizer!r}")
        require_integer("epochs", self.epochs, low=1)

    def __call__(self, model: nn.Module, batches: Batches, loss: Loss) -> dict[str, Tensor]:
        """Return each parameter before training minus after; see `LocalWork`."""
        updates = {name: value.detach().clone() for name, value in _parameters(model)}
        optimizer = self.optimizer(model.parameters())
        for _ in range(self.epochs):
            for inputs, targets in batches:
                optimizer.zero_grad()
                _backward(loss(model(inputs), targets))
                optimizer.step()
        for name, value in _parameters(model):
            # In place: another copy of the model may not fit. Half precision is too coarse.
            wide = torch.promote_types(value.dtype, torch.float32)
            updates[name] = updates[name].to(wide).sub_(value.detach())
        return updates


class _PerturbedClient(NumPyClient):
    """The common part of `SignClient` and `GradientClient`."""

    encoding: ClassVar[str]

    def __init__(
        self,
        context: Context,
        model: nn.Module,
        train_loader: Batches,
        *,
        work: LocalWork | None = None,
        loss: Loss = nn.functional.cross_entropy,
        test_loader: Batches | None = None,
    ) -> None:
        require_type("context", context, Context, "a flwr.app.Context")
        require_type("model", model, nn.Module, "a torch.nn.Module")
        require_type("train_loader", train_loader, DataLoader, "a torch DataLoader")
        require_type("test_loader", test_loader, DataLoader | None, "a torch DataLoader, or None")
        work = work or FullBatchGradient()
        for name, value in (("work", work), ("loss", loss)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {value!r}")
        self.context = context
        self.model = model
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.work = work
        self.loss = loss

    def get_parameters(self, config: dict[str, Scalar]) -> NDArrays:
        """Return the model's arrays, in the order of its state dict."""
        return list(_arrays_of(self.model).values())

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train the server's model and answer its instruction.

        Parameters
        ----------
        parameters : list of arrays
            The model, in the order of its state dict.
        config : dict
            The server's configuration. Without an instruction in it the answer is the locally
            trained model, as FedAvg expects.

        Returns
        -------
        arrays : list of arrays
            The payload's arrays, or the trained model.
        num_examples : int
            The number of the client's examples.
        metrics : dict
            The payload's scalars, or empty.

        Raises
        ------
        WireError
            If the instruction asks for a kind of payload that this client does not send.
        UpdateError
            If the update is not finite.
        PolicyError
            If the environment or the run config sets a policy but no mod of the app enforces it.
        """
        require_enforcement(self.context)
        instruction = Instruction.decode(config) if Instruction.is_in(config) else None
        if instruction is not None and instruction.encoding.name != self.encoding:
            wanted = instruction.encoding.name
            raise WireError(
                f"{type(self).__name__} sends {self.encoding!r}, not {wanted!r}: SignClient is for "
                "SignSGD, GradientClient for MedianSGD, and any other NumPyClient with "
                "mods=[perturb] for both"
            )
        before = self.__load(parameters)
        self.model.train()
        updates = self.work(self.model, self.train_loader, self.loss)
        after = _arrays_of(self.model)
        examples = _num_examples(self.train_loader)
        if instruction is None:
            trained = {
                name: (before[name] - _array_of(value)).astype(before[name].dtype)
                for name, value in updates.items()
            }
            return list({**after, **trained}.values()), examples, {}
        layout = Layout.with_exact_positions(before, instruction.exact)
        update = _reader_of(layout, updates, layout.reader_of_difference(before, after))
        arrays, scalars = answer(self.context, instruction, layout, update, after).encode()
        return arrays, examples, scalars

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Return mean loss, number of examples and accuracy on the test data.

        There is an accuracy only where targets are integers, and outputs score two or more classes
        for each of them along their second dimension: (N, C, …) for targets of (N, …).

        Raises
        ------
        ValueError
            If the client was made without a `test_loader`.
        PolicyError
            If the environment or the run config sets a policy but no mod of the app enforces it.
        """
        require_enforcement(self.context)
        if self.test_loader is None:
            raise ValueError(
                "test_loader must be given for evaluation, got None; or let the strategy skip "
                "evaluation, with fraction_evaluate=0.0"
            )
        self.__load(parameters)
        self.model.eval()
        loss, correct, classifies = 0.0, 0.0, True
        with torch.no_grad():
            for inputs, targets in self.test_loader:
                outputs = self.model(inputs)
                loss += float(self.loss(outputs, targets)) * len(targets)
                classifies = classifies and _are_scores(outputs, targets)
                if classifies:
                    hits = outputs.argmax(dim=1) == targets
                    correct += float(hits.sum()) / hits.numel() * len(targets)
        examples = _num_examples(self.test_loader)
        return loss / examples, examples, {"accuracy": correct / examples} if classifies else {}

    def __load(self, parameters: NDArrays) -> Arrays:
        """Load the server's model, and return its arrays by name."""
        names = self.model.state_dict()
        if len(parameters) != len(names):
            raise ValueError(
                f"the server has sent {len(parameters)} arrays, and the model's state dict has "
                f"{len(names)}: server and clients must have the same model, buffers included"
            )
        arrays = dict(zip(names, map(as_numbers, parameters), strict=True))
        self.model.load_state_dict({name: _tensor_of(array) for name, array in arrays.items()})
        return arrays


class SignClient(_PerturbedClient):
    """A NumPyClient that sends the signs of its noisy update, one bit per parameter.

    The client of `fedmedian.strategies.SignSGD`: Algorithms 1 and 3 of Chen et al. (arXiv
    1906.01736) with a torch model.

    Parameters
    ----------
    context : Context
        The client's context, as ``client_fn`` receives it.
    model : torch.nn.Module
        The model, on the CPU. The server's arrays have the order of its state dict.
    train_loader : torch.utils.data.DataLoader
        The client's training data, in batches of inputs and targets.
    work : callable (default: ``FullBatchGradient()``)
        The work of a round: `FullBatchGradient`, `MiniBatchGradient`, `LocalEpochs`, or any other
        `LocalWork`.
    loss : callable (default: ``torch.nn.functional.cross_entropy``)
        Maps outputs and targets to the mean loss.
    test_loader : torch.utils.data.DataLoader, optional
        The client's test data, for `evaluate`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    """

    encoding: ClassVar[str] = "signs"


class GradientClient(_PerturbedClient):
    """A NumPyClient that sends its noisy update in full.

    The client of `fedmedian.strategies.MedianSGD`: Algorithms 2 and 4 of Chen et al. (arXiv
    1906.01736) with a torch model. For the parameters see `SignClient`.
    """

    encoding: ClassVar[str] = "vector"


def _reader_of(layout: Layout, updates: Mapping[str, Tensor], others: Read) -> Read:
    """Return a function that writes parts of the updates; `others` writes the missing ones."""

    def read(part: Part, out: Float32) -> None:
        spec = layout.flat[part.block]
        update = updates.get(spec.name)
        if update is None:
            others(part, out)
            return
        # A view of every second entry, say, stays one when it is flattened.
        flat = update.detach().reshape(spec.shape).reshape(-1).contiguous()
        offset = flat.storage_offset() + part.first
        runs = flat.as_strided((part.runs, part.length), (part.stride, 1), offset)
        torch.from_numpy(out).reshape(part.runs, part.length).copy_(runs)

    return read


def _are_scores(outputs: object, targets: object) -> bool:
    """Return whether outputs score classes, of which targets are the right ones."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and not (targets.is_floating_point() or targets.is_complex())
        and outputs.ndim > 1
        and outputs.shape[1] > 1
        and outputs.shape[:1] + outputs.shape[2:] == targets.shape
    )


def _num_examples(batches: Batches) -> int:
    """Return how many examples a loader yields: not those that its sampler leaves out or drops."""
    sampler = batches.sampler if batches.batch_sampler is None else batches.batch_sampler
    if type(sampler) is not BatchSampler:  # batches of any examples
        return len(cast(Sized, batches.dataset))
    # The sampler of an iterable dataset has no length.
    drawn = sampler.sampler if isinstance(sampler.sampler, Sized) else batches.dataset
    number = len(cast(Sized, drawn))
    return number - number % sampler.batch_size if sampler.drop_last else number


def _arrays_of(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: _array_of(value) for name, value in model.state_dict().items()}


def _array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # torch has no NumPy arrays of it
        return tensor.view(torch.int16).numpy().view(bfloat16())
    return tensor.numpy()


def _tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Return a copy: torch must not write to Flower's read-only arrays."""
    own = np.array(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every parameter; a shared one under each of its names, as in the state dict."""
    return model.named_parameters(remove_duplicate=False)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.grad.detach() for name, value in _parameters(model) if value.grad is not None
    }
