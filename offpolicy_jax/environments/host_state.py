"""Save and restore single environments exactly: MuJoCo physics as arrays, everything else as one JSON document.

Nothing here is pickled: a saved state holds numbers, never code.
"""

import base64
import importlib
import inspect
import json
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from offpolicy_jax.errors import UserError

_INERT = (str, gymnasium.Space, EnvSpec, np.random.Generator, np.random.RandomState)
# Saved by `Physics`, or drawing only.
_PHYSICS_MODULES = ("mujoco.", "dm_control.", "gymnasium.envs.mujoco.mujoco_rendering")


def encode(value: Any) -> Any:
    """Plain data to JSON values that `decode` turns back into the same types and bits. Raises TypeError otherwise."""
    kind = type(value)  # exact types: a subclass (an enum, a named tuple) would come back as something else
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is np.ndarray or issubclass(kind, np.generic):
        array = np.asarray(value)
        if array.dtype.kind in "biufSU":
            data = base64.b64encode(array.tobytes()).decode()
            return {"array" if kind is np.ndarray else "scalar": [array.dtype.str, list(array.shape), data]}
    if kind in (list, tuple):
        return {kind.__name__: [encode(item) for item in value]}
    if kind is dict:
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"cannot save a {kind.__module__}.{kind.__qualname__}")


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind in ("array", "scalar"):
        dtype, shape, data = content
        array = np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    items = [decode(item) for item in content]
    return tuple(items) if kind == "tuple" else items


def to_bytes(document: Any) -> np.ndarray:
    """A JSON document as a uint8 array."""
    return np.frombuffer(json.dumps(document).encode(), np.uint8).copy()


def from_bytes(array: np.ndarray) -> Any:
    """The inverse of `to_bytes`."""
    return json.loads(np.asarray(array, np.uint8).tobytes())


def get_attributes(layer: Any) -> tuple[dict[str, Any], bool]:
    """The object's own numbers, arrays and nested lists of them, encoded, and whether that is all of its state."""
    attributes, complete = {}, True
    for name, value in vars(layer).items():
        if _is_inert(value) or name.startswith("_ezpickle"):  # the constructor's arguments
            continue
        try:
            attributes[name] = encode(value)
        except TypeError:
            complete = False
    return attributes, complete


def set_attributes(layer: Any, attributes: dict[str, Any]) -> None:
    """Put back what `get_attributes` took."""
    for name, value in attributes.items():
        if not _is_inert(vars(layer).get(name)):  # such as a window that is open here and was not there
            vars(layer)[name] = decode(value)


def get_generator(generator: np.random.Generator | np.random.RandomState) -> Any:
    """The state of a NumPy random generator, encoded."""
    if isinstance(generator, np.random.RandomState):
        return encode(generator.get_state(legacy=False))
    return encode(generator.bit_generator.state)


def set_generator(generator: np.random.Generator | np.random.RandomState, state: Any) -> None:
    """Put back what `get_generator` took. Raises ValueError for a generator of another kind."""
    if isinstance(generator, np.random.RandomState):
        generator.set_state(decode(state))
    else:
        generator.bit_generator.state = decode(state)


def load_mujoco() -> Any:
    """The MuJoCo module, imported late; as Any, since type checkers cannot see into its C++ part."""
    return importlib.import_module("mujoco")


def is_mujoco(environment: Any) -> bool:
    """Whether the object simulates with one MuJoCo model and its data, under Gymnasium's names for them."""
    if "mujoco" not in sys.modules:
        return False
    mujoco = load_mujoco()
    parts = getattr(environment, "model", None), getattr(environment, "data", None)
    return isinstance(parts[0], mujoco.MjModel) and isinstance(parts[1], mujoco.MjData)


class Physics:
    """The MuJoCo models and data of N copies of one environment.

    MuJoCo's own state vector alone would not do: Gymnasium's observations and rewards read quantities that lag it by
    a substep, dm_control steps from intermediate results, and some tasks rewrite their model at every episode.
    """

    def __init__(self, models: list[Any], datas: list[Any]) -> None:
        self._mujoco = mujoco = load_mujoco()
        self._models, self._datas = models, datas
        self._signature = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._state_size = mujoco.mj_stateSize(models[0], self._signature)
        # As built, before a first episode: what differs from it is state.
        self._pristine = {name: array.copy() for name, array in _arrays(models[0]).items()}
        # New data has no contacts and constraints yet, which leaves the arrays that are always there. (Contacts and
        # constraints have no fixed place in memory; mj_step1 computes them again.)
        fixed = _arrays(mujoco.MjData(models[0]))
        self._fields: dict[str, list[tuple[str, list[int]]]] = {}
        for name, array in fixed.items():
            self._fields.setdefault(array.dtype.name, []).append((name, list(array.shape)))

    def layout(self) -> dict[str, Any]:
        """What the saved arrays mean, as a JSON value; another version of MuJoCo may have another layout."""
        fields = {dtype: [[name, shape] for name, shape in fields] for dtype, fields in self._fields.items()}
        return {"size": self._state_size, "fields": fields}

    def get_state(self) -> dict[str, np.ndarray]:
        """Arrays (N, ...) without disturbing the simulation."""
        state = {"physics": np.empty((len(self._datas), self._state_size))}
        for data, model, row in zip(self._datas, self._models, state["physics"], strict=True):
            self._mujoco.mj_getState(model, data, row, self._signature)
        for dtype, fields in self._fields.items():
            rows = [np.concatenate([getattr(data, name).ravel() for name, _ in fields]) for data in self._datas]
            state[f"data_{dtype}"] = np.stack(rows)
        for name, pristine in self._pristine.items():
            values = [getattr(model, name) for model in self._models]
            if not all(np.array_equal(value, pristine) for value in values):
                state[f"model_{name}"] = np.stack(values)
        return state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `get_state` took, given the same `layout()`."""
        for i, (model, data) in enumerate(zip(self._models, self._datas, strict=True)):
            for name, pristine in self._pristine.items():
                value = state[f"model_{name}"][i] if f"model_{name}" in state else pristine
                if not np.array_equal(getattr(model, name), value):
                    getattr(model, name)[...] = value
            self._mujoco.mj_setState(model, data, np.ascontiguousarray(state["physics"][i]), self._signature)
            self._mujoco.mj_step1(model, data)
            for dtype, fields in self._fields.items():
                row, start = state[f"data_{dtype}"][i], 0
                for name, _ in fields:
                    array = getattr(data, name)
                    array[...] = row[start : start + array.size].reshape(array.shape)
                    start += array.size

    def check(self, state: dict[str, np.ndarray], layout: Any) -> None:
        """Raises UserError if a saved state has another layout, ValueError if it went through float32 arrays."""
        for name in ("physics", "data_float64"):
            if state[name].dtype != np.float64:
                raise ValueError(f"{name} is {state[name].dtype}, not float64: keep saved states in NumPy arrays")
        if layout != self.layout():
            raise UserError("the saved state does not fit this simulation; resume with the MuJoCo that saved it")


def _arrays(struct: Any) -> dict[str, np.ndarray]:
    values = {name: getattr(struct, name) for name in dir(struct) if not name.startswith("_")}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.size}
    # Where MuJoCo has a null pointer, the array that one gets is not a view but owns some memory without a meaning.
    return {name: array for name, array in arrays.items() if not array.flags.owndata}


def _is_inert(value: Any) -> bool:
    """Whether an attribute is no state of the episode, or is saved elsewhere."""
    module = f"{type(value).__module__}."
    return (
        isinstance(value, _INERT)
        or inspect.isroutine(value)
        or inspect.isclass(value)
        or module.startswith(_PHYSICS_MODULES)
    )
