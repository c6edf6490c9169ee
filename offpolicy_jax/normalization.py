"""Running normalisation of observations and rewards, kept beside the replay so that every agent has it for nothing.

Replay stores raw data; observations and rewards are normalised as they are read (sampled, acted on, evaluated) with
the statistics of that moment. Observations become (o - mean) / std, rewards r / std of the discounted return, or only
their signs (Mnih et al. 2015, Atari).
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct

from offpolicy_jax.transition import PyTree, Transition

CLIP = 10.0
EPSILON = 1e-8


@struct.dataclass
class Moments:
    """Count, mean and summed squared deviations of a pytree of float arrays, over all leading axes seen so far."""

    count: jax.Array  # float32, shape ()
    mean: PyTree
    m2: PyTree


@struct.dataclass
class Normalizer:
    """Statistics of one seed's data. A field that is None leaves its quantity as it is."""

    observation: Moments | None = None
    discounted_return: Moments | None = None
    running_return: jax.Array | None = None  # float32, shape (E,)
    discount: jax.Array | None = None  # float32, shape ()
    signs: bool = struct.field(pytree_node=False, default=False)  # of rewards, instead


def init(
    example: Transition,
    num_envs: int,
    observations: bool,
    rewards: bool,
    discount: float = 0.99,
    clip_rewards: bool = False,
) -> Normalizer:
    """Empty statistics for transitions like `example` (no batch axes). Raises ValueError for rewards of both kinds."""
    if rewards and clip_rewards:
        raise ValueError("rewards are normalised or clipped, not both")
    return Normalizer(
        observation=_init_moments(_floats(example.observation)) if observations else None,
        discounted_return=_init_moments(jnp.zeros(())) if rewards else None,
        running_return=jnp.zeros(num_envs) if rewards else None,
        discount=jnp.asarray(discount, jnp.float32) if rewards else None,
        signs=clip_rewards,
    )


def update(normalizer: Normalizer, transition: Transition) -> Normalizer:
    """Take in new transitions with leaves (T, E, ...), in time order."""
    if normalizer.observation is not None:
        batch = _floats(transition.observation)
        normalizer = replace(
            normalizer, observation=_update_moments(normalizer.observation, batch, transition.reward.shape)
        )
    if normalizer.discounted_return is not None:

        def accumulate(running, inputs):
            reward, done = inputs
            running = running * normalizer.discount + reward
            return jnp.where(done, 0.0, running), running

        done = transition.terminated | transition.truncated
        running, returns = jax.lax.scan(accumulate, normalizer.running_return, (transition.reward, done))
        normalizer = replace(
            normalizer,
            discounted_return=_update_moments(normalizer.discounted_return, returns, returns.shape),
            running_return=running,
        )
    return normalizer


def normalize_observation(normalizer: Normalizer | None, observation: PyTree) -> PyTree:
    """Observation (any leading axes) in units of the running standard deviation, clipped to +-10. Integers pass."""
    if normalizer is None or normalizer.observation is None:
        return observation
    moments = normalizer.observation

    def normalize(x, mean, m2):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        std = jnp.sqrt(_variance(moments.count, m2) + EPSILON)
        return jnp.clip((x - mean) / std, -CLIP, CLIP)

    return jax.tree.map(normalize, observation, moments.mean, moments.m2)


def normalize_reward(normalizer: Normalizer | None, reward: jax.Array) -> jax.Array:
    """Reward in units of the running standard deviation of the discounted return, clipped to +-10; never shifted.

    If rewards are clipped, its sign.
    """
    if normalizer is not None and normalizer.signs:
        return jnp.sign(reward)
    if normalizer is None or normalizer.discounted_return is None:
        return reward
    moments = normalizer.discounted_return
    return jnp.clip(reward / jnp.sqrt(_variance(moments.count, moments.m2) + EPSILON), -CLIP, CLIP)


def normalize(normalizer: Normalizer | None, transition: Transition) -> Transition:
    """A transition with both observations and the reward normalised."""
    if normalizer is None:
        return transition
    return replace(
        transition,
        observation=normalize_observation(normalizer, transition.observation),
        next_observation=normalize_observation(normalizer, transition.next_observation),
        reward=normalize_reward(normalizer, transition.reward),
    )


def _floats(tree: PyTree) -> PyTree:
    """The tree with integer leaves (one-hot states, pixels) replaced by zeros of shape (): they are not normalised."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(()), tree)


def _init_moments(example: PyTree) -> Moments:
    def nothing() -> PyTree:
        return jax.tree.map(jnp.zeros_like, example)

    return Moments(count=jnp.zeros(()), mean=nothing(), m2=nothing())


def _update_moments(moments: Moments, batch: PyTree, batch_shape: tuple[int, ...]) -> Moments:
    """Chan, Golub & LeVeque's pairwise update: exact for any split of the data into batches."""
    axes, added = tuple(range(len(batch_shape))), float(math.prod(batch_shape))
    total = moments.count + added

    def combine(x, mean, m2):
        if x.ndim == mean.ndim:  # an integer leaf's placeholder
            return mean, m2
        batch_mean = x.mean(axes)
        delta = batch_mean - mean
        m2 = m2 + jnp.square(x - batch_mean).sum(axes) + jnp.square(delta) * moments.count * added / total
        return mean + delta * added / total, m2

    pairs = jax.tree.map(combine, batch, moments.mean, moments.m2)
    mean, m2 = jax.tree.transpose(jax.tree.structure(moments.mean), jax.tree.structure((0, 0)), pairs)
    return Moments(count=total, mean=mean, m2=m2)


def _variance(count: jax.Array, m2: jax.Array) -> jax.Array:
    return jnp.where(count > 1, m2 / jnp.maximum(count, 1.0), 1.0)
