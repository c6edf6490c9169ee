"""Both SAC agents, continuous and discrete: one gradient step against a reference, structure, and the probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import sac, sac_discrete
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import in_graph
from tests import probes
from tests.agents.probing import (
    CONTINUOUS,
    DISCRETE,
    assert_close,
    assert_same,
    differ,
    full_replay,
    learn,
    random_experience,
    spec_of,
    start,
    tiny,
)

BOTH = pytest.mark.parametrize("agent", [sac, sac_discrete])
LEARNED = ("actor", "critics", "log_alpha", "actor_optimizer", "critic_optimizer", "temperature_optimizer")


@functools.partial(jax.jit, static_argnums=0)
def gradient_step(agent, config, state, batch, key):
    return agent.gradient_step(config, state, batch, key)


@functools.partial(jax.jit, static_argnums=0)
def update(agent, config, state, replay, key):
    return agent.update(config, state, replay, jnp.int32(100), key)


def setup(agent, num_envs=2, **changes):
    """A config, a state some updates old (targets and optimisers differ from their start) and a full replay."""
    config = tiny(agent, learning_rate=1e-2, tau=0.1, **changes)
    state = start(agent, config, spec_of(agent), jax.random.key(0))
    replay = full_replay(agent, config, spec_of(agent), state, num_envs)
    for i in range(2):
        state, _ = update(agent, config, state, replay, jax.random.key(10 + i))
    return config, state, replay


# One gradient step


def reference_step(agent, config, state, batch, key):
    """The same step from the paper's equations, without the library's losses, distributions and optimiser."""
    discrete = agent is sac_discrete
    next_key, actor_key = jax.random.split(key)
    alpha = jnp.exp(state.log_alpha)
    optimizer = optax.adam(config.learning_rate)

    def step(loss, params, optimizer_state):
        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state

    def critics_at(params, observation, action=None):
        return state.critic_network.apply(params, observation, *([] if discrete else [action]))

    def minimum_and_log_prob(actor, critics, observation, key):
        """E[min_i Q_i] and E[log pi], of one sampled action, or exact over all of them."""
        if discrete:
            p = jax.nn.softmax(state.policy_network.apply(actor, observation).logits)
            return jnp.sum(p * critics_at(critics, observation).min(0), -1), jnp.sum(p * jnp.log(p), -1)
        policy = state.policy_network.apply(actor, observation)
        std = jnp.exp(policy.log_std)
        u = policy.mean + std * jax.random.normal(key, policy.mean.shape)
        density = jax.scipy.stats.norm.logpdf(u, policy.mean, std) - jnp.log(1.0 - jnp.tanh(u) ** 2)
        return critics_at(critics, observation, jnp.tanh(u)).min(0), density.sum(-1)

    next_q, next_log_prob = minimum_and_log_prob(state.actor, state.target_critics, batch.next_observation, next_key)
    future = config.discount * (1.0 - batch.terminated) * (next_q - alpha * next_log_prob)
    target = config.reward_scale * batch.reward + future

    def critic_loss(params):
        q = critics_at(params, batch.observation, batch.action)
        q = q[:, jnp.arange(q.shape[1]), batch.action] if discrete else q
        return 0.5 * jnp.sum(jnp.mean((q - target) ** 2, 1))

    critics, critic_optimizer = step(critic_loss, state.critics, state.critic_optimizer)

    def actor_loss(params):
        q, log_prob = minimum_and_log_prob(params, critics, batch.observation, actor_key)
        return jnp.mean(alpha * log_prob - q)

    actor, actor_optimizer = step(actor_loss, state.actor, state.actor_optimizer)
    entropy = -jnp.mean(minimum_and_log_prob(state.actor, critics, batch.observation, actor_key)[1])
    best = 0.98 * np.log(DISCRETE.num_actions) if discrete else -float(CONTINUOUS.action_size)
    log_alpha, temperature_optimizer = step(
        lambda x: jnp.exp(x) * (entropy - best), state.log_alpha, state.temperature_optimizer
    )
    return state.replace(
        actor=actor,
        critics=critics,
        target_critics=jax.tree.map(lambda t, q: 0.9 * t + 0.1 * q, state.target_critics, critics),
        log_alpha=log_alpha,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        temperature_optimizer=temperature_optimizer,
    )


@BOTH
def test_gradient_step_is_critics_actor_temperature_targets(agent):
    config, state, replay = setup(agent, discount=0.9, reward_scale=2.0)
    batch, key = ring.sample(replay, jax.random.key(5), 16), jax.random.key(6)
    expected = jax.jit(functools.partial(reference_step, agent))(config, state, batch, key)
    out, metrics = gradient_step(agent, config, state, batch, key)
    assert_close(out, expected)
    np.testing.assert_allclose(metrics["temperature/alpha"], np.exp(state.log_alpha), rtol=1e-5)


@BOTH
def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not(agent):
    config, state, replay = setup(agent)
    batch, key = ring.sample(replay, jax.random.key(5), 16), jax.random.key(6)
    no, yes = jnp.zeros(16, bool), jnp.ones(16, bool)
    going_on, truncated, terminated = (
        gradient_step(agent, config, state, batch.replace(terminated=a, truncated=b), key)[0]
        for a, b in [(no, no), (no, yes), (yes, no)]
    )
    assert_same(going_on, truncated)
    assert differ(going_on.critics, terminated.critics)


@BOTH
def test_the_actor_s_loss_leaves_the_critics_alone(agent):
    """Critics without an error (all zero, as the rewards) must not move, though the actor does."""
    config, state, replay = setup(agent, discount=0.0)
    state = start(agent, config, spec_of(agent), jax.random.key(0))
    state = state.replace(critics=jax.tree.map(jnp.zeros_like, state.critics))
    batch = ring.sample(replay, jax.random.key(5), 16)
    out, _ = gradient_step(agent, config, state, batch.replace(reward=jnp.zeros(16)), jax.random.key(6))
    assert_same(out.critics, state.critics)
    assert differ(out.actor, state.actor)


@BOTH
def test_without_a_learning_rate_only_the_targets_move(agent):
    config, state, replay = setup(agent)
    config = config.replace(learning_rate=0.0)
    out, _ = update(agent, config, state, replay, jax.random.key(2))
    assert_same([out.actor, out.critics, out.log_alpha], [state.actor, state.critics, state.log_alpha])
    steps = config.rollout_length * replay.num_envs
    left = 0.9**steps  # of the distance between target and online parameters
    expected = jax.tree.map(lambda t, q: left * t + (1 - left) * q, state.target_critics, state.critics)
    assert differ(out.target_critics, state.target_critics)
    assert_close(out.target_critics, expected, rtol=1e-4)


@BOTH
def test_tau_one_copies_the_critics_and_tau_zero_keeps_the_targets(agent):
    config, state, replay = setup(agent)
    out, _ = update(agent, config.replace(tau=1.0), state, replay, jax.random.key(2))
    assert differ(out.critics, state.critics)
    assert_same(out.target_critics, out.critics)
    out, _ = update(agent, config.replace(tau=0.0), state, replay, jax.random.key(2))
    assert differ(out.critics, state.critics)
    assert_same(out.target_critics, state.target_critics)


@BOTH
def test_a_temperature_that_is_not_learned_stays(agent):
    config = tiny(agent, learn_temperature=False, initial_temperature=0.2)
    state = start(agent, config, spec_of(agent), jax.random.key(0))
    replay = full_replay(agent, config, spec_of(agent), state)
    out, metrics = update(agent, config, state, replay, jax.random.key(2))
    np.testing.assert_allclose(np.exp(out.log_alpha), 0.2, rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature/alpha"], 0.2, rtol=1e-6)
    assert differ(out.actor, state.actor)


@BOTH
def test_the_target_entropy_decides_which_way_the_temperature_goes(agent):
    config, state, replay = setup(agent)
    moves = []
    for scale in (-10.0, 10.0):
        out, _ = update(agent, config.replace(target_entropy_scale=scale), state, replay, jax.random.key(2))
        moves.append(float(out.log_alpha - state.log_alpha))
    # A target of -scale * dim A for continuous actions, and of scale * log |A| for discrete ones.
    signs = (1, -1) if agent is sac else (-1, 1)
    assert tuple(np.sign(moves)) == signs


@BOTH
@pytest.mark.parametrize(("changes", "steps"), [({}, 4), ({"rollout_length": 3}, 12)])
def test_number_of_gradient_steps(agent, changes, steps):
    config = tiny(agent, **changes)
    state = start(agent, config, spec_of(agent), jax.random.key(0))
    replay = full_replay(agent, config, spec_of(agent), state, num_envs=4)
    out, metrics = update(agent, config, state, replay, jax.random.key(2))
    for optimizer in (out.actor_optimizer, out.critic_optimizer, out.temperature_optimizer):
        assert int(optimizer[0].count) == steps
    assert all(x.shape == () and np.isfinite(x) for x in metrics.values())


@BOTH
def test_warm_up_is_uniform_whatever_the_state(agent):
    config, spec = tiny(agent, learning_starts=50), spec_of(agent)
    old, new = (start(agent, config, spec, jax.random.key(k)) for k in (0, 1))
    observation, key = np.full((4000, 3), 30.0, np.float32), jax.random.key(3)
    act = jax.jit(functools.partial(agent.act, config))
    for step, uniform in [(0, True), (49, True), (50, False)]:
        actions = np.asarray(act(old, observation, np.int32(step), key)[0])
        assert uniform == (not differ(actions, act(new, observation, np.int32(step), key)[0]))
        if uniform and spec.discrete:
            np.testing.assert_allclose(np.bincount(actions, minlength=4) / 4000, 0.25, atol=0.04)
        elif uniform:
            np.testing.assert_allclose(np.histogram(actions, 4, (-1.0, 1.0))[0] / 8000, 0.25, atol=0.03)


@pytest.mark.parametrize(
    ("agent", "spec", "other"), [(sac, DISCRETE, "sac_discrete"), (sac_discrete, CONTINUOUS, "sac")]
)
def test_actions_of_the_other_kind_are_refused_in_one_line_that_names_the_other_agent(agent, spec, other):
    with pytest.raises(UserError, match=rf"--agent={other}$") as error:
        agent.init(tiny(agent), spec, jax.random.key(0))
    assert "\n" not in str(error.value)
    assert spec.id in str(error.value)


# Probes: environments whose values are known


def probe_config(agent, **changes):
    sizes = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_capacity": 1024, "learning_starts": 0}
    values = {"learning_rate": 5e-3, "tau": 0.05, "discount": 0.9, "initial_temperature": 1e-6}
    return agent.Config(**sizes, **(values | changes), learn_temperature=False, gradient_steps=1)


def learned(agent, probe, updates, **changes):
    environment = probe(discrete=agent is sac_discrete)
    config = probe_config(agent, **changes)
    state = start(agent, config, environment.spec, jax.random.key(0))
    state = learn(agent, config, state, random_experience(environment), jax.random.key(1), updates)
    assert int(state.actor_optimizer[0].count) == updates  # as many as `gradient_steps` says, not one per environment
    return state


@functools.partial(jax.jit, static_argnums=0)
def values(agent, state, observations):
    """Q of every critic at all or a few actions for observations (B,): (actions, N, B)."""
    observations = jnp.asarray(observations, jnp.float32)[:, None]
    if agent is sac_discrete:
        return jnp.moveaxis(state.critic_network.apply(state.critics, observations), -1, 0)
    actions = jnp.broadcast_to(jnp.array([-0.9, 0.0, 0.9])[:, None, None], (3, *observations.shape))
    return jax.vmap(lambda a: state.critic_network.apply(state.critics, observations, a))(actions)


@functools.partial(jax.jit, static_argnums=0)
def greedy(agent, state, observations):
    observations = jnp.asarray(observations, jnp.float32)[:, None]
    return agent.policy(probe_config(agent), state, observations).reshape(len(observations))


@BOTH
def test_probe_a_time_limit_is_no_end_of_the_task(agent):
    """Reward 1 for ever is worth 1 / (1 - 0.9) = 10; with the limit of 10 steps as an end it would be below 6.6."""
    state = learned(agent, probes.ConstantReward, 2500, learning_rate=1e-2)
    np.testing.assert_allclose(values(agent, state, [0.0]), 10.0, atol=0.4)


@BOTH
def test_probe_one_step(agent):
    np.testing.assert_allclose(values(agent, learned(agent, probes.OneStep, 600), [0.0]), 1.0, atol=0.05)


@BOTH
def test_probe_the_value_depends_on_the_observation(agent):
    q = values(agent, learned(agent, probes.ObservationReward, 600), [-1.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([-1.0, 1.0], q.shape), atol=0.1)


@BOTH
def test_probe_a_later_reward_is_discounted(agent):
    q = values(agent, learned(agent, probes.DelayedReward, 1000), [0.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([0.9, 1.0], q.shape), atol=0.06)


@BOTH
def test_probe_the_best_action_is_found(agent):
    action = greedy(agent, learned(agent, probes.ActionReward, 1500), [0.0])
    np.testing.assert_allclose(action, 1 if agent is sac_discrete else 0.5, atol=0.1)


@BOTH
def test_probe_the_best_action_depends_on_the_observation(agent):
    action = greedy(agent, learned(agent, probes.ObservationAction, 1000), [-1.0, 1.0])
    np.testing.assert_array_equal(action > 0, [False, True])


@BOTH
def test_probe_a_temperature_pays_for_entropy(agent):
    """Where the reward does not depend on the action, uniform actions are best, and the value counts their entropy."""
    alpha, discount = 0.1, 0.9
    state = learned(agent, probes.ConstantReward, 2500, learning_rate=1e-2, initial_temperature=alpha)
    entropy = np.log(2.0)  # of two actions, and of actions in [-1, 1]: the same
    expected = (1.0 + discount * alpha * entropy) / (1.0 - discount)
    np.testing.assert_allclose(values(agent, state, [0.0]), expected, atol=0.4)


class Restarting(probes.ConstantReward):
    """The same, but episodes begin at observation -1 and are at 1 from then on, also when the time limit cuts them."""

    def reset(self, key):
        return probes._begin(-1.0, key)

    def step(self, state, action):
        truncated = state.elapsed + 1 >= self.limit
        return probes._advance(self, state, 1.0, 1.0, terminated=False, truncated=truncated)


@BOTH
def test_probe_in_the_training_loop(agent):
    """Acting, storing and learning together, with observations that reset under the agent."""
    environment = Restarting(discrete=agent is sac_discrete)
    loop = in_graph.Loop(agent, environment, probe_config(agent, learning_rate=1e-2), num_lanes=1, num_envs=4)
    carry = loop.start(jax.random.split(jax.random.key(0), 1), np.array([0]))
    carry = loop.advance(carry, 4 * 2500, lambda: False)
    learner = carry.learner
    q = values(agent, jax.tree.map(lambda x: x[0], learner.agent), [-1.0, 1.0]).max(0)
    np.testing.assert_allclose(q, 10.0, atol=0.4)  # of the best action: almost without entropy, no other is tried

    stored = jax.tree.map(lambda x: np.asarray(x[0]), learner.replay.storage)
    np.testing.assert_array_equal(stored.next_observation, 1.0)  # the true successor, never the reset observation
    assert np.mean(stored.observation < 0.0) == pytest.approx(0.1, abs=0.01)
    assert np.mean(stored.truncated) == pytest.approx(0.1, abs=0.01)
    assert not np.any(stored.terminated)
    assert int(learner.totals.diverged_at[0]) == -1
