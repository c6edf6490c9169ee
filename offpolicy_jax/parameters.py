"""Parameters as pytrees: copies, target averaging, one optimiser step."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from offpolicy_jax.transition import PyTree

T = TypeVar("T")


def copy(params: T) -> T:
    """A copy in its own buffers, so that online and target parameters can both be donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), params)


def polyak(target: T, online: T, tau: jax.Array | float) -> T:
    """(1 - tau) target + tau online: tau is the weight of the new parameters, 1 copies them and 0 keeps the old."""
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, online)


def adam_init(params: PyTree) -> optax.OptState:
    """State for `adam_step`."""
    return optax.adam(0.0).init(params)


def adam_step(
    gradients: PyTree,
    optimizer_state: optax.OptState,
    params: T,
    learning_rate: jax.Array | float,
    epsilon: float = 1e-8,
) -> tuple[T, optax.OptState]:
    """One Adam step (Kingma & Ba 2015; beta 0.9, 0.999). The learning rate may be traced and vmapped."""
    updates, optimizer_state = optax.adam(learning_rate, eps=epsilon).update(gradients, optimizer_state)
    return optax.apply_updates(params, updates), optimizer_state  # type: ignore[return-value]


def clip_by_global_norm(gradients: T, limit: jax.Array | float) -> T:
    """Gradients scaled down so that their global norm is at most `limit`."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gradients)))
    return jax.tree.map(lambda x: x * jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12)), gradients)
