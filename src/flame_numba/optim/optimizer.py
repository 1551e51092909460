"""What optimizers share: which parameters, their state, f32 masters, and saving it all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any

from ..dtypes import DType, float32
from ..errors import ConfigError, DTypeError, GradientError, ShapeError
from ..ops.core.copies import copied, copy_into
from ..ops.core.mutation import check_target
from ..ops.core.update import Update, update
from ..ops.elementwise.arithmetic import equal, where
from ..ops.shape.creation import asarray, zeros
from ..pool import memory_tag
from ..scalars import as_number, element
from ..shapes import as_int
from ..storage import Storage
from ..tensor import Tensor


class Rule:
    """An update as a scalar function (p, state…, g, numbers…) → (p, state…), as one kernel.

    For a parameter in f16 or bf16 a second kernel works on its f32 master and writes the rounded copy as well: a
    small step would vanish in the few bits of the parameter itself. (Micikevicius et al. 2017)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._direct = update(function)
        self._mastered = _with_master(function)

    def __call__(self, parameter: Tensor, master: Tensor | None, *operands: Any) -> None:
        if master is None:
            self._direct(parameter, *operands)
        else:
            self._mastered(parameter, master, *operands)


def _with_master(function: Callable[..., Any]) -> Update:
    def mastered(low: Any, *operands: Any) -> Any:
        results = function(*operands)
        new = results if isinstance(results, tuple) else (results,)
        return new[0], *new

    given = inspect.signature(function).parameters.values()
    low = inspect.Parameter("low", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    mastered.__name__, mastered.__doc__ = f"{function.__name__}_master", function.__doc__
    mastered.__signature__ = inspect.Signature([low, *given])  # type: ignore[attr-defined]
    return update(mastered)


class Slot:
    """What an optimizer keeps of one parameter: its state tensors by name, its master, how many steps it took."""

    def __init__(self, parameter: Tensor, names: Iterable[str]) -> None:
        self.dtype: DType = parameter.dtype
        self.kept = float32 if parameter.dtype.itemsize == 2 else parameter.dtype
        self.steps = 0
        with memory_tag("optimizer"):
            self.state = {name: zeros(parameter.shape, dtype=self.kept, device=parameter.device) for name in names}
            self.master = copied(parameter.detach(), float32) if parameter.dtype.itemsize == 2 else None
        self._seen: tuple[Storage, int] = (parameter.storage, parameter.storage.version)

    def complete(self, parameter: Tensor, names: Iterable[str]) -> None:
        """Add state that a setting asks for which was changed since the last step; it starts at 0."""
        for name in names:
            if name not in self.state:
                with memory_tag("optimizer"):
                    self.state[name] = zeros(parameter.shape, dtype=self.kept, device=parameter.device)

    def refresh(self, parameter: Tensor) -> None:
        """Take the master from the parameter anew if somebody else wrote to that.

        Where the parameter is what the master rounds to, as after loading both, the master keeps its digits.
        """
        seen = (parameter.storage, parameter.storage.version)
        if self.master is not None and (seen[0] is not self._seen[0] or seen[1] != self._seen[1]):
            low = parameter.detach()
            copy_into(self.master, where(equal(copied(self.master, low.dtype), low), self.master, copied(low, float32)))

    def note(self, parameter: Tensor) -> None:
        """Remember what the parameter is now: the master agrees with it."""
        self._seen = (parameter.storage, parameter.storage.version)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_seen"}  # a copy's parameter is another


class Optimizer:
    """Base of optimizers. A subclass names its settings and state, and updates one parameter in `_update`.

    Settings are attributes (`optimizer.lr = 0.1` changes the rate from then on; the next step checks it). No step waits
    for the device. Parameters that are frozen, or will be, have no gradient and so are left alone. Raises ConfigError
    for settings out of range, or parameters that are none, DTypeError for a setting that is no number.
    """

    settings: tuple[str, ...] = ()
    optional_state: tuple[str, ...] = ()  # state tensors that some settings need: a saved state may have them or not
    lr: float

    def __init__(self, parameters: Iterable[Tensor], **settings: Any) -> None:
        self.parameters = _listed(self._name, parameters)
        self._settle(settings)
        self._slots: list[Slot | None] = [None] * len(self.parameters)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _state_names(self) -> tuple[str, ...]:
        """Names of the state tensors, of the parameter's shape and starting at 0."""
        return ()

    def _update(self, parameter: Tensor, gradient: Tensor, slot: Slot) -> None:
        """Queue one parameter's kernel. `slot.steps` counts this step."""
        raise NotImplementedError(f"{self._name} has no _update()")

    def step(self) -> None:
        """Update every parameter that has a gradient, in place; the others are left alone.

        Gradients and parameters that do not fit raise, as does a lack of memory for the state, before any is updated.
        """
        self._settle(self._settings())
        ready = []
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.shape != parameter.shape:
                raise ShapeError(f"{self._name}: gradient {gradient.shape} of a parameter of shape {parameter.shape}")
            check_target(self._name, parameter)
            slot = self._slot(i)
            slot.refresh(parameter)
            ready.append((parameter, gradient, slot))
        for parameter, gradient, slot in ready:
            slot.steps += 1
            try:
                self._update(parameter, gradient, slot)
            except Exception:  # not of an interrupt, which comes when the kernel has run
                slot.steps -= 1
                raise
            slot.note(parameter)

    def _slot(self, i: int) -> Slot:
        slot, parameter = self._slots[i], self.parameters[i]
        if slot is None:
            slot = self._slots[i] = Slot(parameter, self._state_names())
        elif slot.dtype is not parameter.dtype:
            raise GradientError(
                f"{self._name}: parameter {i} was {slot.dtype.name} and is now {parameter.dtype.name}; "
                "make a new optimizer after to_dtype()"
            )
        else:
            slot.complete(parameter, self._state_names())
        return slot

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    # --- copying and pickling: with the parameters, so copy a module and its optimizer together ---------------------
    def __getstate__(self) -> dict[str, Any]:
        for slot, parameter in zip(self._slots, self.parameters, strict=True):
            if slot is not None:
                slot.refresh(parameter)
                slot.note(parameter)
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for slot, parameter in zip(self._slots, self.parameters, strict=True):
            if slot is not None:
                slot.note(parameter)

    # --- saving -------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Kind, settings, and each parameter's steps, state and master as NumPy arrays, in the parameters' order."""
        slots = [None if slot is None else _saved(slot) for slot in self._slots]
        return {"kind": self._name, "settings": self._settings(), "slots": slots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state: settings and all.

        Raises ConfigError, ShapeError or DTypeError, changing nothing, if it belongs to another kind of optimizer or to
        other parameters, or is not such a state.
        """
        op = f"{self._name}.load_state_dict"
        _holds(op, "the state", state, ("kind",))
        if state["kind"] != self._name:
            raise ConfigError(f"{self._name}: the state is of {state['kind']!r}")
        _holds(op, "the state", state, ("settings", "slots"))
        _holds(op, "the state's settings", state["settings"], self.settings)
        saved = state["slots"]
        if not isinstance(saved, (list, tuple)):
            raise DTypeError(f"{op}: the state's slots must be a list, got {type(saved).__name__}")
        if len(saved) != len(self.parameters):
            raise ConfigError(f"{self._name}: the state is of {len(saved)} parameters, not of {len(self.parameters)}")
        before = self._settings()
        self._settle(state["settings"])
        try:
            slots = [None if s is None else self._restored(i, s) for i, s in enumerate(saved)]
        except BaseException:
            self._set(before)
            raise
        self._slots = slots

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.settings}

    def _settle(self, settings: Mapping[str, Any]) -> None:
        """Check settings, and take them over as plain numbers: a kernel takes no tensor for one."""
        plain = {name: _plain(value) for name, value in settings.items()}
        self._check(plain)
        self._set(plain)

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError for a setting out of range."""

    def _set(self, settings: Mapping[str, Any]) -> None:
        for name in self.settings:
            setattr(self, name, settings[name])

    def _restored(self, i: int, saved: Mapping[str, Any]) -> Slot:
        parameter = self.parameters[i]
        op = f"{self._name}.load_state_dict"
        _holds(op, f"the slot of parameter {i}", saved, ("steps", "state"))
        _holds(op, f"the state of parameter {i}", saved["state"], ())
        given = saved["state"].keys()
        slot = Slot(parameter, (*self._state_names(), *(name for name in self.optional_state if name in given)))
        tensors = dict(slot.state) if slot.master is None else {**slot.state, "master": slot.master}
        if tensors.keys() - self.optional_state != given - set(self.optional_state):
            raise ConfigError(
                f"{self._name}: the state of parameter {i} holds {sorted(given)}, expected {sorted(tensors)}"
            )
        for name, tensor in tensors.items():
            if name not in given:
                continue  # a setting asked for it after the last step: it starts at 0
            try:
                found = asarray(saved["state"][name], device=tensor.device)
            except DTypeError as error:
                raise DTypeError(f"{op}: {name} of parameter {i} is no array of numbers: {error}") from None
            if found.shape != tensor.shape:
                raise ShapeError(f"{self._name}: {name} of parameter {i} has shape {found.shape}, not {tensor.shape}")
            if not found.dtype.is_floating:
                raise DTypeError(f"{op}: {name} of parameter {i} is {found.dtype.name}, not {tensor.dtype.name}")
            copy_into(tensor, found)
        slot.steps = as_int(op, f"steps of parameter {i}", saved["steps"])
        if slot.steps < 0:
            raise ConfigError(f"{op}: steps={slot.steps} of parameter {i} must be ≥ 0")
        return slot

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self._settings().items())
        return f"{self._name}({len(self.parameters)} parameters, {told})"


def _saved(slot: Slot) -> dict[str, Any]:
    tensors = dict(slot.state) if slot.master is None else {**slot.state, "master": slot.master}
    return {"steps": slot.steps, "state": {name: tensor.numpy() for name, tensor in tensors.items()}}


def _listed(op: str, parameters: Any) -> list[Tensor]:
    """The parameters as a list. Raises ConfigError that says what was given instead."""
    if isinstance(parameters, Tensor):
        raise ConfigError(f"{op}: expected a list of parameters, got a single tensor; write [parameter]")
    kind, advice = type(parameters).__name__, "pass module.parameters(), or a list of parameters"
    if isinstance(parameters, (Mapping, str)) or not isinstance(parameters, Iterable):
        raise ConfigError(f"{op}: expected a list of parameters, got {kind}; {advice}")
    listed = list(parameters)
    if not listed:
        raise ConfigError(f"{op}: the list of parameters is empty")
    for i, x in enumerate(listed):
        if not isinstance(x, Tensor):
            raise ConfigError(f"{op}: parameter {i} must be a leaf tensor, got {type(x).__name__}; {advice}")
        if not x.is_leaf or not x.dtype.is_floating:  # one that is frozen now may be trained later
            what = f"{x.dtype.name}" if x.is_leaf else "the result of an op"
            raise ConfigError(f"{op}: parameter {i} must be a leaf tensor of floating dtype, but is {what}")
    if len({id(x) for x in listed}) != len(listed):
        raise ConfigError(f"{op}: a parameter is listed twice")
    return listed


def _holds(op: str, what: str, given: Any, names: Iterable[str]) -> None:
    """Raise DTypeError for what is no mapping, ConfigError for one without these names."""
    if not isinstance(given, Mapping):
        raise DTypeError(f"{op}: {what} must be a mapping as state_dict() gives it, got {type(given).__name__}")
    if missing := [name for name in names if name not in given]:
        raise ConfigError(f"{op}: {what} has no {', '.join(missing)}")


def _plain(value: Any) -> Any:
    if value.__class__ is float:  # as most are at each step
        return value
    if isinstance(value, (tuple, list)):
        return tuple([_plain(v) for v in value])
    return element(value)


def at_least_zero(op: str, **settings: float) -> None:
    """Raise ConfigError for a setting below 0, infinite or NaN, DTypeError for one that is no number."""
    for name, value in settings.items():
        if not 0 <= as_number(op, name, value) < inf:
            raise ConfigError(f"{op}: {name}={value} must be ≥ 0 and finite")


def below_one(op: str, **settings: float) -> None:
    """Raise ConfigError for a setting that is not in 0 ≤ x < 1, DTypeError for one that is no number."""
    for name, value in settings.items():
        if not 0 <= as_number(op, name, value) < 1:
            raise ConfigError(f"{op}: {name}={value} must be in 0 ≤ {name} < 1")
