"""PROPS (Corrado & Hanna 2023, arXiv 2311.08290): equations in offpolicy_jax/losses/props.py; the target is PPO's.

Order of one update, every m = `rollout_length` steps: every n = `target.rollout_length` steps the target learns by PPO
from the last b = `target.buffer_batches` batches as if they were on-policy; then the behaviour is set to the target and
moved away from the data that will still be there after the next m steps. References are those of the new target (the
public code takes the old one in the update after a target's). Without behaviour updates this is PPO with a buffer, bit
for bit; with the preset `ros` it is ROS by a step of Adam, as in the public codes, whose size is the learning rate
whatever the gradient's. Gaussian means are not squashed; the public code for MuJoCo puts a tanh on them.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents import ppo
from offpolicy_jax import parameters
from offpolicy_jax.distributions import Categorical, Normal
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import props as losses
from offpolicy_jax.losses.policy_gradient import masked_mean, sampled_kl
from offpolicy_jax.networks import Params, function
from offpolicy_jax.replay import Replay, chronological
from offpolicy_jax.transition import EnvironmentSpec, PyTree, Transition


@struct.dataclass
class Config:
    """Hyper-parameters of PROPS. Floats may be traced or carry a seed axis; the others fix shapes and programs."""

    target: ppo.Config = ppo.Config(learning_rate=1e-3, entropy_weight=0.01, buffer_batches=2)
    """PPO's hyper-parameters for the target policy."""
    learning_rate: float = 1e-3
    """Adam's step size for the behaviour policy; its moments outlive the resets. 0: no behaviour updates."""
    clip: float = 0.3
    """epsilon: at 1 - epsilon times its probability under the target an action is pushed no further."""
    kl_weight: float = 0.1
    """lambda, the weight of the KL of behaviour and target, summed over action dimensions."""
    target_kl: float = 0.05
    """delta: KL(target || behaviour) on a minibatch from which on the behaviour's update stops, but not before its
    first step; inf: never."""
    max_gradient_norm: float = 0.5
    """Global norm that the behaviour's gradients are clipped to."""
    kl_direction: Literal["behaviour_target", "target_behaviour"] = struct.field(
        pytree_node=False, default="behaviour_target"
    )
    """KL(behaviour || target), as in the public code for Gaussians, or KL(target || behaviour): its one for discrete
    actions estimates that by the actions taken, and the paper is said to write it so (not verified)."""
    epochs: int = struct.field(pytree_node=False, default=16)
    """Passes over the data of a behaviour update."""
    minibatches: int = struct.field(pytree_node=False, default=16)
    """Parts of each pass. A remainder that does not divide is left out of that pass."""
    rollout_length: int = struct.field(pytree_node=False, default=256)
    """m: steps of each parallel environment between behaviour updates; it divides target.rollout_length."""

    @property
    def buffer_length(self) -> int:
        """Steps of each parallel environment that the replay keeps."""
        return self.target.buffer_length

    @property
    def discount(self) -> Any:
        """The target's."""
        return self.target.discount


_NEVER = float("inf")
_CARTPOLE = ppo.Config(rollout_length=1024, learning_rate=1e-3, entropy_weight=0.01, buffer_batches=2)
PRESETS = {
    # One step on all data after every environment step, neither clipped nor held back: dear, for small tasks.
    "ros": Config(clip=_NEVER, kl_weight=0.0, target_kl=_NEVER, epochs=1, minibatches=1, rollout_length=1),
    # For small discrete tasks, with one environment.
    "cartpole": Config(target=_CARTPOLE, target_kl=0.03, minibatches=8, rollout_length=128),
}


@struct.dataclass
class State:
    """Everything that learning changes."""

    target: ppo.State
    behaviour: Params
    optimizer: optax.OptState  # of the behaviour
    metrics: dict[str, jax.Array]  # of the target's last update


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """The target's update if it is due, then the behaviour's. Metrics of the target are those of its last update."""
    length = config.target.rollout_length
    due = step % (length * replay.num_envs) == 0
    learn = lambda: ppo.update(config.target, state.target, replay, step, key)  # noqa: E731
    target, target_metrics = jax.lax.cond(due, learn, lambda: (state.target, state.metrics))

    pi = function(target.policy_network)
    data, mask = _kept(config, replay)
    reference = pi(target.parameters["policy"], data.observation)
    old_log_prob = ppo.log_prob(reference, data)

    def loss(behaviour, batch):
        data, mask, reference, old_log_prob = batch
        policy = pi(behaviour, data.observation)
        log_ratio = ppo.log_prob(policy, data) - old_log_prob
        kl = policy.kl(reference) if config.kl_direction == "behaviour_target" else reference.kl(policy)
        value = losses.behaviour_loss(log_ratio, kl, config.clip, config.kl_weight, mask)
        clipped = masked_mean(1.0 * (log_ratio < jnp.log1p(-jnp.minimum(config.clip, 1.0))), mask)
        behaviour_metrics = {
            "behaviour/loss": value,
            "behaviour/kl": masked_mean(kl, mask),
            "behaviour/clip_fraction": clipped,
        }
        return value, (sampled_kl(log_ratio, mask), behaviour_metrics)

    behaviour, optimizer, steps, behaviour_metrics = parameters.descend_minibatches(
        loss,
        parameters.copy(target.parameters["policy"]),
        state.optimizer,
        (data, mask, reference, old_log_prob),
        jax.random.fold_in(key, 2**31 - 1),  # the target splits the same key: fold_in(key, i) is its i-th part
        epochs=config.epochs,
        minibatches=config.minibatches,
        learning_rate=config.learning_rate,
        max_gradient_norm=config.max_gradient_norm,
        largest_distance=config.target_kl,
        valid=mask,
    )
    metrics = target_metrics | behaviour_metrics | {"behaviour/steps": steps}
    return State(target, behaviour, optimizer, target_metrics), metrics


def _kept(config: Config, replay: Replay) -> tuple[Transition, jax.Array]:
    """What the next m steps leave in the replay, as rows (N, ...), and which of them hold data (N,)."""
    rows = replay.rows - config.rollout_length
    first = jnp.maximum(replay.size - rows, 0)
    kept = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, rows), chronological(replay))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept)


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimisers. Raises UserError for lengths that do not fit together."""
    m, n, rows = config.rollout_length, config.target.rollout_length, config.buffer_length
    if n % m:
        raise UserError(f"config.rollout_length ({m}) must divide config.target.rollout_length ({n})")
    if m == rows:
        raise UserError(f"config.rollout_length ({m}) is the whole buffer: choose a smaller one, or --agent=ppo")
    target = ppo.init(config.target, spec, key)
    behaviour = parameters.copy(target.parameters["policy"])
    metrics = {name: jnp.zeros(()) for name in ppo.METRICS}
    return State(target, behaviour, parameters.adam_init(behaviour), metrics)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """The behaviour's sampled actions, (E,) or (E, A), and their log-density under it (E,) among the extras."""
    behaviour: Normal | Categorical = function(state.target.policy_network)(state.behaviour, observation)
    action, extras = ppo.behave(behaviour, key)
    return action, extras | {"log_prob": behaviour.log_prob(extras.get("sample", action))}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The target's likeliest action, (E,) or (E, A)."""
    return ppo.policy(config.target, state.target, observation)


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: the target's sampled action, V(s) (E,), and no bonus."""
    return ppo.predict(config.target, state.target, observation, key)
