"""PMOE on PPO (Ren et al. 2021, arXiv 2104.09122): equations in losses/pmoe.py and losses/policy_gradient.py.

One update is PPO's (agents/ppo.py), with the density of a mixture of K unsquashed Gaussians in the ratio. On every
minibatch two more losses join: a critic Q(s, a) is regressed on the value targets A + V of the actions taken, and the
gate on which expert's sample Q likes best (L_frep; samples and Q are held fixed, and one draw of noise serves all
epochs). As in the public code, the gate also gets PPO's own gradient, through the ratio, and one global norm clips all
gradients together. Not as in it: Q's squared error has a factor 1/2 (`critic_weight` = 2 undoes it) and Q has the
networks' own layers instead of three of ReLU; the learning rate falls, and epochs end at `target_kl`. A mixture's
entropy has no closed form, so there is no entropy bonus.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from agents import ppo
from offpolicy_jax import networks, parameters
from offpolicy_jax.distributions import NormalMixture
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import pmoe as losses
from offpolicy_jax.losses import policy_gradient
from offpolicy_jax.networks import Activation, Critics, KernelInit, NormalMixturePolicy, Params, StateValue, function
from offpolicy_jax.replay import Replay
from offpolicy_jax.transition import EnvironmentSpec, PyTree, zeros


@struct.dataclass
class Config:
    """Hyper-parameters of PMOE on PPO. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size at the start."""
    discount: float = 0.99
    """Discount factor gamma."""
    gae_lambda: float = 0.95
    """Trace parameter lambda of the advantages."""
    clip: float = 0.2
    """epsilon: how far a ratio may leave 1 before its gradient stops."""
    value_clip: float = 0.2
    """The same for values, around those before the update; inf: no clipping."""
    value_weight: float = 0.5
    """Weight of the values' loss."""
    gate_weight: float = 1.0
    """Weight of the gate's frequency loss."""
    critic_weight: float = 1.0
    """Weight of the loss of Q, which the gate learns from."""
    max_gradient_norm: float = 0.5
    """Global norm that gradients are clipped to."""
    target_kl: float = 0.03
    """KL(pi_old || pi) on a minibatch from which on the update stops; inf: never."""
    num_experts: int = struct.field(pytree_node=False, default=4)
    """K; the paper's, whose public PPO code has 5."""
    anneal_steps: int = struct.field(pytree_node=False, default=-1)
    """Environment steps over which the step size falls to zero; -1: those of the run, 0: it stays."""
    epochs: int = struct.field(pytree_node=False, default=10)
    """Passes over the data of an update."""
    minibatches: int = struct.field(pytree_node=False, default=32)
    """Parts of each pass. A remainder that does not divide is left out of that pass."""
    rollout_length: int = struct.field(pytree_node=False, default=2048)
    """Steps of each parallel environment between updates."""
    hidden_sizes: tuple[int, ...] = struct.field(pytree_node=False, default=(64, 64))
    """Units of the hidden layers, for experts, values and Q alike; the gate is linear."""
    activation: Activation = struct.field(pytree_node=False, default="tanh")
    """Nonlinearity of the hidden layers."""
    kernel_init: KernelInit = struct.field(pytree_node=False, default="orthogonal")
    """Initial weights; orthogonal has gain sqrt(2) in hidden layers and 0.01 in the experts' last one."""

    @property
    def buffer_length(self) -> int:
        """Steps of each parallel environment that the replay keeps."""
        return self.rollout_length


@struct.dataclass
class State:
    """Everything that learning changes, and the (static) networks it belongs to."""

    parameters: dict[str, Params]  # policy, value and critic
    optimizer: optax.OptState
    policy_network: NormalMixturePolicy = struct.field(pytree_node=False)
    value_network: StateValue = struct.field(pytree_node=False)
    critic_network: Critics = struct.field(pytree_node=False)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """All epochs on the replay's rollout."""
    pi, v, q = (function(f) for f in (state.policy_network, state.value_network, state.critic_network))
    data = ppo.rollouts(replay, lambda o: v(state.parameters["value"], o), config.discount, config.gae_lambda)
    old: NormalMixture = pi(state.parameters["policy"], data.transitions.observation)
    old_log_prob = old.log_prob(data.transitions.extras["sample"])
    noise_key, order_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, old.mean.shape)  # one draw for each row, expert and update

    def loss(params, batch):
        data, old_log_prob, noise = batch
        observation, mean = data.transitions.observation, lambda x: policy_gradient.masked_mean(x, data.mask)
        policy: NormalMixture = pi(params["policy"], observation)
        log_ratio = policy.log_prob(data.transitions.extras["sample"]) - old_log_prob
        advantage = policy_gradient.standardize(data.advantage, data.mask)
        surrogate = policy_gradient.clipped_surrogate(log_ratio, advantage, config.clip, data.mask)
        value = v(params["value"], observation)
        value_loss = policy_gradient.value_loss(value, data.value, data.target, config.value_clip, data.mask)

        error = q(params["critic"], observation, data.transitions.action)[0] - data.target
        critic_loss = 0.5 * mean(jnp.square(error))
        samples = jnp.clip(policy.mean + jnp.exp(policy.log_std) * noise, -1.0, 1.0)  # (B, K, A)
        best = losses.best_expert(_values(state, params, observation, samples))
        gate_loss = losses.frequency_loss(policy.logits, best, data.mask)
        kl = policy_gradient.sampled_kl(log_ratio, data.mask)
        weights = jax.nn.softmax(policy.logits)
        metrics = {
            "actor/loss": surrogate,
            "actor/kl": kl,
            "actor/clip_fraction": mean(1.0 * (jnp.abs(jnp.expm1(log_ratio)) > config.clip)),
            "gate/loss": gate_loss,
            "gate/largest_weight": mean(jnp.max(weights, axis=-1)),
            "critic/loss": value_loss,
            "critic/q_loss": critic_loss,
        }
        total = surrogate + config.value_weight * value_loss
        return total + config.gate_weight * gate_loss + config.critic_weight * critic_loss, (kl, metrics)

    params, optimizer, steps, metrics = parameters.descend_minibatches(
        loss,
        state.parameters,
        state.optimizer,
        (data, old_log_prob, noise),
        order_key,
        epochs=config.epochs,
        minibatches=config.minibatches,
        learning_rate=config.learning_rate * ppo.remaining(config.anneal_steps, step, replay, config.rollout_length),
        max_gradient_norm=config.max_gradient_norm,
        largest_distance=config.target_kl,
        valid=data.mask,
    )
    metrics |= {"actor/steps": steps, "critic/value_mean": policy_gradient.masked_mean(data.value, data.mask)}
    return replace(state, parameters=params, optimizer=optimizer), metrics


def _values(state: State, params: dict[str, Params], observation: PyTree, action: jax.Array) -> jax.Array:
    """Q (1, B, K) of every expert's action (B, K, A), held fixed."""
    num = action.shape[1]
    rows = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), observation)
    value = function(state.critic_network)(params["critic"], rows, action.reshape(-1, action.shape[-1]))
    return jax.lax.stop_gradient(value.reshape(1, -1, num))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Parameters and optimiser for an environment with continuous actions. Raises UserError for discrete ones."""
    if spec.discrete:
        raise UserError(f"pmoe_ppo needs continuous actions and {spec.id} has discrete ones: use --agent=ppo")
    shape = {"encoder": networks.encoder(spec.observation), "hidden_sizes": config.hidden_sizes}
    shape |= {"kernel_init": config.kernel_init, "activation": config.activation}
    size, num = spec.action_size, config.num_experts
    policy_network = NormalMixturePolicy(action_size=size, num_experts=num, output_gain=0.01, **shape)
    value_network, critic_network = StateValue(**shape), Critics(num=1, **shape)
    policy_key, value_key, critic_key = jax.random.split(key, 3)
    observation = zeros(spec.observation, (1,))
    params = {
        "policy": policy_network.init(policy_key, observation),
        "value": value_network.init(value_key, observation),
        "critic": critic_network.init(critic_key, observation, zeros(spec.action, (1,))),
    }
    return State(params, parameters.adam_init(params), policy_network, value_network, critic_network)


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """A sampled expert's actions (E, A), with the sample before it is clipped to [-1, 1] as an extra."""
    sample = function(state.policy_network)(state.parameters["policy"], observation).sample(key)
    return jnp.clip(sample, -1.0, 1.0), {"sample": sample}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The mean of the expert with the largest weight, clipped to [-1, 1]: (E, A)."""
    return jnp.clip(function(state.policy_network)(state.parameters["policy"], observation).mode(), -1.0, 1.0)


def predict(
    config: Config, state: State, observation: PyTree, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For the value bias: a sampled action, V(s) (E,), and no bonus: rewards carry no entropy here."""
    action, _ = act(config, state, observation, jnp.zeros((), jnp.int32), key)
    value = function(state.value_network)(state.parameters["value"], observation)
    return action, value, jnp.zeros_like(value)
