"""Between models and the rest: parameters as named tensors, read from a module, checked and written into it.

Every function is pure but `update_module`, which changes the module it is given and nothing else, and
`let_go` and `take_back`, between which a module is without its memory. Nothing returned shares memory with an argument,
except for `public_states`. `updates` computes with parameters, `parameter_lists` and `codec` write them down.

Infinities that a model holds on purpose (an attention mask registered as a buffer) are let through where both sides
agree; every other value that is not finite is refused by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bitfount_model.errors import ParameterError
from bitfount_model.types import Parameters

SUPPORTED_DTYPES: tuple[torch.dtype, ...] = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""The dtypes that parameters and buffers may have."""

_NORM_BLOCK = 1 << 24
_LISTED = 50  # differences spelled out in one message; a hostile update may have millions


NETWORK = "_model."
"""The prefix of the network's own names within a model's state dict."""


def public_names(names: Iterable[str]) -> dict[str, str]:
    """The names of a model's parameters as users see them: those of the network that `create_model` returned.

    Args:
        names: of the model's state dict.

    Returns:
        Name in the state dict -> public name.

    Raises:
        ParameterError: the model has an attribute beside the network under a name of the network's.
    """
    public = {name: name.removeprefix(NETWORK) for name in names}
    if twice := sorted(name for name, count in Counter(public.values()).items() if count > 1):
        raise ParameterError(
            f"{', '.join(quoted(name) for name in twice)}: the model's own attribute has the name of one of the network that"
            " create_model returns. Rename the attribute, or make it part of the network."
        )
    return public


def trainable_names(module: nn.Module) -> frozenset[str]:
    """Public names of the parameters that training may change: no buffers, and nothing that is frozen.

    Args:
        module: a model whose network is built.
    """
    public = public_names(module.state_dict())
    named = module.named_parameters(remove_duplicate=False)
    return frozenset(public[name] for name, value in named if value.requires_grad and name in public)


def public_states(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a model under their public names, where they are: nothing is copied.

    Args:
        module: a model whose network is built.

    Returns:
        Name -> tensor without gradient, in state dict order, in the module's own memory: training changes it.

    Raises:
        ParameterError: as `snapshot`.
    """
    state = _usable_state(module)
    public = public_names(state)
    return {public[name]: value.detach() for name, value in state.items()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies the parameters and persistent buffers of a module.

    Args:
        module: any module; left as it is.

    Returns:
        Name -> contiguous CPU tensor without gradient, in state dict order. Later training does not change it.

    Raises:
        ParameterError: an entry of the state dict is no dense tensor of a supported dtype, or is not initialised yet.
    """
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in _usable_state(module).items()
    }


def let_go(module: nn.Module) -> None:
    """Gives back the memory of a module's parameters, persistent buffers and gradients; their values are lost.

    The module is not to be used until `take_back`, and then holds nothing that means anything until `update_module`.

    Args:
        module: on any device. Tensors that share their memory with others, or do not own it, stay as they are.
    """
    module.zero_grad(set_to_none=True)
    for value in module.state_dict().values():
        memory = value.untyped_storage()
        if memory.resizable() and not memory.is_shared() and memory.nbytes() == value.nbytes:
            memory.resize_(0)


def take_back(module: nn.Module) -> None:
    """Gives a module the memory again that `let_go` took, without values: what is written into it next must hold no infinities."""
    for value in module.state_dict().values():
        memory = value.untyped_storage()
        if memory.nbytes() < value.nbytes:
            memory.resize_(value.nbytes)


def update_module(module: nn.Module, params: Parameters, *, what: str = "the given parameters") -> None:
    """Writes parameters into a module: all of them, or none.

    Args:
        module: the module to change, on any device.
        params: a value for every name of `public_states`, with its shape and dtype; copied, never aliased.
        what: names them in the message, as for `check_compatible`.

    Raises:
        ParameterError: they do not fit, or give different values to weights that the module ties together. The
            module is then as it was.
    """
    state = _usable_state(module)
    public = public_names(state)
    check_compatible({public[name]: value.detach() for name, value in state.items()}, params, what=what)
    given = {name: params[public[name]] for name in public}
    _check_ties(state, given)
    # Filling the module's own state dict keeps its `_metadata`, which tells modules what version wrote the entries.
    state.update(given)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ParameterError(f"{type(module).__name__}.load_state_dict refused the parameters: {error}") from error


def check_compatible(expected: Parameters, given: Parameters, *, what: str) -> None:
    """Refuses parameters that do not fit the expected ones, listing every difference in one error.

    Args:
        expected: the parameters that fit.
        given: the parameters to check.
        what: names the given ones in the message, such as "the update of pod 'north'".

    Raises:
        ParameterError: names are missing or extra, shapes or dtypes differ, or values are not finite where the
            expected ones are not the same infinity. Nothing is broadcast or cast.
    """
    problems = name_differences(expected, given)
    if isinstance(given, Mapping):
        problems += [each for name in expected if name in given for each in misfits(name, given[name], expected[name])]
    if problems:
        raise refusal(f"{what} cannot be used", problems)


def check_finite(given: Parameters, *, what: str) -> None:
    """Refuses NaN and infinities by name.

    Args:
        given: the parameters to check.
        what: names them in the message.

    Raises:
        ParameterError: names every tensor with values that are not finite and says how many; or a value is no tensor.
    """
    problems = [
        problem for name, value in given.items() for problem in unusable(name, value) or stray_values(name, value)
    ]
    if problems:
        raise refusal(f"{what} cannot be used", problems)


def name_differences(expected: Mapping[str, object], given: object) -> list[str]:
    """The names that a mapping lacks or has too many, or that it is no mapping; empty if it fits."""
    if not isinstance(given, Mapping):
        return [f"found {quoted(given)} of type {type(given).__name__}, want a mapping of name -> value"]
    missing = [f"{quoted(name)} is missing" for name in expected if name not in given]
    return missing + [f"{quoted(name)} is not a name of the model" for name in given if name not in expected]


def unusable(name: str, value: object) -> list[str]:
    """What keeps an entry from being a parameter at all; empty if nothing does."""
    if not isinstance(value, Tensor):
        return [f"{quoted(name)} is of type {type(value).__name__}, want a torch.Tensor"]
    if is_lazy(value):
        return [f"{quoted(name)} is a lazy parameter without a shape: run a batch through the model first"]
    if value.layout != torch.strided:
        return [f"{quoted(name)} has layout {value.layout}, want a dense tensor"]
    if value.dtype not in SUPPORTED_DTYPES:
        return [f"{quoted(name)} has dtype {value.dtype}, want one of {', '.join(map(str, SUPPORTED_DTYPES))}"]
    return []


def misfits(name: str, found: Tensor, want: Tensor) -> list[str]:
    """How one tensor differs from the expected one in shape, dtype and finiteness; empty if it fits."""
    problems = unusable(name, found)
    if problems:
        return problems
    if found.shape != want.shape:
        problems.append(f"{quoted(name)} has shape {tuple(found.shape)}, want {tuple(want.shape)}")
    if found.dtype != want.dtype:
        problems.append(f"{quoted(name)} has dtype {found.dtype}, want {want.dtype}")
    return problems or stray_values(name, found, want)


def holds_finite(value: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinities; integers and empty ones never have."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    low, high = torch.aminmax(value.detach())  # one pass without a temporary, and NaN wins both
    return math.isfinite(low.item()) and math.isfinite(high.item())


def stray_values(name: str, value: Tensor, allowed: Tensor | None = None) -> list[str]:
    """Says how many values are not finite, leaving out infinities that `allowed` holds at the same places.

    Returns:
        One sentence that begins with the name; empty if there are none.
    """
    if holds_finite(value):
        return []
    stray = ~torch.isfinite(value)
    if allowed is not None:
        stray &= value != allowed.to(value.device)
    count = int(stray.sum())
    return [f"{quoted(name)} has {count} of {value.numel()} values that are NaN or infinite"] if count else []


def euclidean_norm(params: Parameters) -> float:
    """The norm over all finite floating-point values, in float64; infinite only where it is no float64."""
    return math.hypot(*(_norm(value.detach()) for value in params.values() if value.is_floating_point()))


def refusal(headline: str, problems: Sequence[str]) -> ParameterError:
    """One error from all problems; the first 50 are spelled out."""
    rest = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    listed = "; ".join(problems[:_LISTED])
    return ParameterError(f"{headline}: {listed}{rest}. Names, shapes and dtypes must be those of the model.")


def quoted(name: object) -> str:
    """A name from outside, made safe and short for a message: quoted, escaped, at most about 100 characters."""
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _usable_state(module: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = module.state_dict()
    problems = [problem for name, value in state.items() for problem in unusable(name, value)]
    if problems:
        raise refusal("the model's state dict cannot be sent or saved", problems)
    return state


def _norm(value: Tensor) -> float:
    if value.numel() > _NORM_BLOCK:  # in one piece, torch makes a float64 copy of it
        return math.hypot(*map(_norm, torch.split(value.reshape(-1), _NORM_BLOCK)))
    norm = float(torch.linalg.vector_norm(value, dtype=torch.float64))
    if 1e-150 < norm < math.inf or not value.numel():
        return norm
    finite = value.nan_to_num(0.0, 0.0, 0.0)  # or squares that are no float64, too large or too small
    largest = float(finite.abs().max())
    return largest * float(torch.linalg.vector_norm(finite / largest, dtype=torch.float64)) if largest else 0.0


def _check_ties(state: Parameters, params: Parameters) -> None:
    """Tied weights are one tensor under several names: different values cannot both be kept."""
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        owner = owners.setdefault(place, name)
        if owner != name and tensor.numel() and not torch.equal(params[owner], params[name]):
            raise ParameterError(
                f"{quoted(owner)} and {quoted(name)} are tied in the model, but their values differ: give both the same"
            )
