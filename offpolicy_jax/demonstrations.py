"""Demonstrations: Minari datasets (https://minari.farama.org) as transitions, and episodes as Minari datasets.

A dataset keeps actions in the environment's own units and T + 1 observations per episode of T steps; transitions hold
actions in [-1, 1] and each observation's successor. Minari is imported inside the functions.
"""

import contextlib
import os
import pathlib
import shutil
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from gymnasium import spaces

from offpolicy_jax.environments.spaces import action_spec, first_action, observation_spec
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree, Transition


class Episode(NamedTuple):
    """T steps of one episode, as NumPy arrays."""

    observations: PyTree  # (T + 1, ...), the last one where the episode ended
    actions: np.ndarray  # (T, A) in [-1, 1], or (T,) integers from 0
    rewards: np.ndarray  # (T,)
    terminated: bool  # else a time limit ended it


def load(dataset: str, environment: Any, episodes: int = 0) -> list[Episode]:
    """The first `episodes` episodes (0: all) of a Minari dataset, by id or path, for such an environment.

    Raises UserError, one line, for a dataset that does not exist, has other spaces, another action repeat (1, if its
    metadata do not name it) or too few episodes, or holds numbers that are not finite.
    """
    data = _open(dataset)
    spec: EnvironmentSpec = environment.spec
    _check_spaces(dataset, data, environment)
    if not data.total_episodes:
        raise UserError(f"{dataset} has no episodes")
    if episodes > data.total_episodes:
        raise UserError(f"{dataset} has {data.total_episodes} episodes: lower --demo-episodes={episodes}")
    to_ours = _from_space(spec.action, data.action_space)
    loaded = []
    for episode in data.iterate_episodes(data.episode_indices[: episodes or None]):
        name, length = f"episode {episode.id} of {dataset}", len(episode.rewards)
        try:
            observations = jax.tree.map(
                lambda s, x: np.asarray(x).reshape(len(x), *s.shape).astype(s.dtype),
                spec.observation,
                _like(spec.observation, episode.observations),
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{name} is damaged: {' '.join(str(error).split())}") from None
        actions, rewards = np.asarray(episode.actions), np.asarray(episode.rewards, np.float32)
        lengths = {len(x) for x in jax.tree.leaves(observations)}
        if not length or lengths != {length + 1} or len(actions) != length:
            raise UserError(f"{name} is incomplete: {length} rewards, {len(actions)} actions, {lengths} observations")
        for x in (*jax.tree.leaves(observations), actions, rewards):
            if not np.all(np.isfinite(x)):
                raise UserError(f"{name} has numbers that are not finite")
        loaded.append(Episode(observations, to_ours(actions), rewards, bool(episode.terminations[-1])))
    return loaded


def absorb(episode: Episode) -> Episode:
    """The episode as an environment with absorbing states would show it (offpolicy_jax/environments/absorbing.py)."""
    length = len(episode.rewards)
    indicator = np.zeros((length + 1, 1), np.float32)
    observations, actions, rewards = episode.observations, episode.actions, episode.rewards
    if episode.terminated:
        indicator = np.append(indicator, [[1.0]], axis=0).astype(np.float32)
        indicator[-2] = 1.0
        observations = jax.tree.map(lambda x: np.concatenate([x[:-1], np.zeros_like(x[:2])]), observations)
        actions = np.concatenate([actions, np.zeros_like(actions[:1])])
        rewards = np.append(rewards, np.float32(0.0))
    return Episode({"absorbing": indicator, "observation": observations}, actions, rewards, False)


def transitions(episodes: Sequence[Episode]) -> Transition:
    """All steps of the episodes, leaves (N, ...), in order. An episode that did not terminate was truncated."""
    last = np.concatenate([np.arange(len(e.rewards)) == len(e.rewards) - 1 for e in episodes])
    terminated = last & np.concatenate([np.full(len(e.rewards), e.terminated) for e in episodes])
    leaves: Any = dict(
        observation=jax.tree.map(lambda *x: np.concatenate([y[:-1] for y in x]), *(e.observations for e in episodes)),
        action=np.concatenate([e.actions for e in episodes]),
        reward=np.concatenate([e.rewards for e in episodes]).astype(np.float32),
        next_observation=jax.tree.map(
            lambda *x: np.concatenate([y[1:] for y in x]), *(e.observations for e in episodes)
        ),
        terminated=terminated,
        truncated=last & ~terminated,
    )
    return Transition(**leaves)  # of NumPy arrays


def save(dataset: str, environment: Any, episodes: Sequence[Episode], **metadata: Any) -> None:
    """Write episodes as a new Minari dataset: an id like name-v0 (in Minari's own directory), or a path with a /.

    Raises UserError for a name that is no id, for one that is taken, and for a disk that refuses.
    """
    from minari import __version__
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    id, path = check_target(dataset)
    repeat = environment.spec.action_repeat
    to_space = _to_space(environment.spec.action, environment.action_space)
    buffers = []
    for i, episode in enumerate(episodes):
        length = len(episode.rewards)
        ends = np.arange(length) == length - 1
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=_in_space(environment.observation_space, episode.observations),
                actions=to_space(episode.actions),  # type: ignore[arg-type]
                rewards=episode.rewards,  # type: ignore[arg-type]
                terminations=ends & episode.terminated,  # type: ignore[arg-type]
                truncations=ends & ~np.bool_(episode.terminated),  # type: ignore[arg-type]
                infos={},
            )
        )
    aside = path.with_name(f".{path.name}.{os.getpid()}")  # a dataset is whole or not there
    try:
        (aside / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            aside / "data",
            observation_space=environment.observation_space,
            action_space=environment.action_space,
            env_spec=_registered(environment.spec.id),
        )
        storage.update_metadata({"dataset_id": id, "minari_version": __version__, "action_repeat": repeat, **metadata})
        storage.update_episodes(buffers)
        aside.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_target(dataset: str) -> tuple[str, pathlib.Path]:
    """Id and directory of a dataset to be written. Raises UserError as `save` does."""
    minari = _minari()
    from minari.dataset.minari_dataset import DATASET_ID_RE

    path = pathlib.Path(dataset)
    as_path = os.sep in dataset
    id = path.name if as_path else dataset
    if (match := DATASET_ID_RE.fullmatch(id)) is None or match.group("version") is None:
        raise UserError(f"{id} is no id of a dataset: end it in a version, as in {id.split('-v')[0]}-v0")
    path = path if as_path else minari.storage.get_dataset_path(dataset)
    if path.exists():
        raise UserError(f"{path} already exists: choose another --dataset")
    return id, path


def _minari() -> Any:
    try:
        import minari
        import minari.storage
    except ImportError as error:
        raise UserError(f"demonstrations need Minari: pip install 'offpolicy-jax[demos]' ({error})") from None
    return minari


def _open(dataset: str) -> Any:
    minari = _minari()
    path = pathlib.Path(dataset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the environment's version, which the spaces tell better
            if path.is_dir():
                return minari.MinariDataset(path / "data" if (path / "data").is_dir() else path)
            return minari.load_dataset(dataset)
    except FileNotFoundError:
        raise UserError(
            f"there is no dataset {dataset}: give a directory or an id of `minari list local`; "
            f"`minari download {dataset}` gets a public one"
        ) from None
    except Exception as error:  # damaged files raise whatever their format's library does
        raise UserError(f"cannot read the dataset {dataset}: {' '.join(str(error).split())}") from None


def _check_spaces(dataset: str, data: Any, environment: Any) -> None:
    spec = environment.spec
    try:
        found = observation_spec(dataset, data.observation_space), action_spec(dataset, data.action_space)
    except UserError as error:
        raise UserError(f"{dataset} does not fit {spec.id}: {error}") from None
    for kind, other, own in (("observations", found[0], spec.observation), ("actions", found[1], spec.action)):
        if other != own:
            raise UserError(f"{dataset} does not fit {spec.id}: its {kind} are {_text(other)}, not {_text(own)}")
    if (repeat := data.storage.metadata.get("action_repeat", 1)) != spec.action_repeat:
        raise UserError(
            f"{dataset} was recorded with --action-repeat={repeat}, not {spec.action_repeat}: use that one (a dataset "
            "from elsewhere says so by action_repeat in its metadata)"
        )
    own = getattr(environment, "action_space", None)
    if own is None:
        raise UserError(f"{spec.id} names no action_space to read the actions of {dataset} by")
    if isinstance(own, spaces.Box) and not spec.discrete:
        bounds = [(data.action_space.low, own.low), (data.action_space.high, own.high)]
        if not all(np.allclose(*pair) for pair in bounds):
            raise UserError(f"{dataset} does not fit {spec.id}: its actions are in {data.action_space}, not {own}")


def _text(spec: PyTree) -> str:
    if isinstance(spec, ArraySpec):
        values = "" if spec.num_values is None else f" of {spec.num_values} values"
        return f"{spec.dtype}{list(spec.shape)}{values}"
    items = spec.items() if isinstance(spec, dict) else enumerate(spec)
    return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in items) + "}"


def _like(spec: PyTree, tree: PyTree) -> PyTree:
    """The tree with the containers of the spec: plain dictionaries and tuples."""
    if isinstance(spec, ArraySpec):
        return tree
    if isinstance(spec, dict):
        return {k: _like(v, tree[k]) for k, v in spec.items()}
    return tuple(_like(v, tree[i]) for i, v in enumerate(spec))


def _in_space(space: Any, tree: PyTree) -> PyTree:
    """Observations (T + 1, ...) in the shapes and dtypes of the environment's own space."""
    if isinstance(space, spaces.Dict):
        return {k: _in_space(part, tree[k]) for k, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_in_space(part, tree[i]) for i, part in enumerate(space.spaces))
    return tree.astype(space.dtype).reshape(len(tree), *(space.shape or ()))


def _from_space(spec: ArraySpec, space: Any) -> Any:
    """From the environment's own actions (T, ...) to ours."""
    if spec.num_values is not None:
        return lambda actions: (actions.reshape(-1) - first_action(space)).astype(np.int32)
    middle, half = (space.low + space.high) / 2.0, (space.high - space.low) / 2.0
    half = np.where(half > 0.0, half, 1.0)  # an action that cannot vary is 0
    return lambda actions: np.clip((actions - middle) / half, -1.0, 1.0).astype(np.float32)


def _to_space(spec: ArraySpec, space: Any) -> Any:
    """From our actions (T, ...) to the environment's own."""
    if spec.num_values is not None:
        return lambda actions: (actions + first_action(space)).astype(space.dtype).reshape(-1, *(space.shape or ()))
    middle, half = (space.low + space.high) / 2.0, (space.high - space.low) / 2.0
    return lambda actions: (middle + np.clip(actions, -1.0, 1.0) * half).astype(space.dtype)


def _registered(id: str) -> Any:
    """Gymnasium's own description of the environment, if it has one that can be written down."""
    import gymnasium

    spec = gymnasium.registry.get(id)
    with contextlib.suppress(ValueError, TypeError):
        return spec and spec.to_json() and spec
    return None
