"""Off-policy MDPO: equal weights are SAC, one gradient step against a reference, the reference policy, and probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import mdpo, sac
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
    start,
    tiny,
)

A = CONTINUOUS.action_size
DIVERGENCE = pytest.mark.parametrize("divergence", ["kl", "tsallis"])
WEIGHTS = {"inverse_step_size": 0.7, "entropy_weight": 0.2, "tsallis_q": 1.5}

gradient_step = jax.jit(mdpo.gradient_step)
jitted_update = jax.jit(mdpo.update)


def update(config, state, replay, step, key=0):
    return jitted_update(config, state, replay, jnp.int32(step), jax.random.key(key))


@functools.cache
def begun(num_envs=2):
    """The first state and a full replay."""
    config = tiny(mdpo)
    state = start(mdpo, config, CONTINUOUS, jax.random.key(0))
    return state, full_replay(mdpo, config, CONTINUOUS, state, num_envs)


def config_of(**changes):
    return tiny(mdpo, **({"learning_rate": 1e-2, "tau": 0.1} | WEIGHTS | changes))


def batch_of(replay, key=5, size=16):
    return ring.sample(replay, jax.random.key(key), size)


def setup(**changes):
    """A config, a state some steps old (reference, targets and optimisers differ from their start) and a batch."""
    config, (state, replay) = config_of(**changes), begun()
    for i in range(2):
        state, _ = gradient_step(config, state, batch_of(replay, 10 + i), jax.random.key(i))
    return config, state, batch_of(replay)


def another_actor(key=1):
    return start(mdpo, tiny(mdpo), CONTINUOUS, jax.random.key(key)).actor


# Equal weights


def pair(**changes):
    """SAC with a fixed temperature, and MDPO with the same parameters and another reference."""
    config = tiny(sac, learning_rate=1e-2, tau=0.1, discount=0.9, learn_temperature=False, initial_temperature=0.3)
    state = start(sac, config, CONTINUOUS, jax.random.key(0))
    alpha = float(jnp.exp(state.log_alpha))
    other = config_of(discount=0.9, inverse_step_size=alpha, entropy_weight=alpha, **changes)
    same = {name: getattr(state, name) for name in ("actor", "critics", "target_critics")}
    return (config, state), (other, begun()[0].replace(reference=another_actor(), **same))


def test_equal_weights_are_sac_bit_for_bit():
    """Operation by operation; compiled as a whole, the two programs are fused and rounded differently."""
    (config, state), (other, mirror) = pair()
    names = ("actor", "critics", "target_critics", "actor_optimizer", "critic_optimizer")
    compiled, replay = mirror, begun()[1]
    for i in range(2):
        batch, key = batch_of(replay, i), jax.random.key(10 + i)
        state, expected = sac.gradient_step(config, state, batch, key)
        mirror, metrics = mdpo.gradient_step(other, mirror, batch, key)
        compiled, _ = gradient_step(other, compiled, batch, key)
        for name in names:
            assert_same(getattr(mirror, name), getattr(state, name))
        for name in ("critic/loss", "critic/q_mean", "actor/loss", "actor/entropy"):
            assert_same(metrics[name], expected[name])
    for name in names:
        assert_close(getattr(compiled, name), getattr(state, name), rtol=1e-3, atol=1e-6)


def test_it_acts_and_predicts_as_sac():
    (config, state), (other, mirror) = pair()
    observation, key = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), jax.random.key(3)
    assert_same(mdpo.policy(other, mirror, observation), sac.policy(config, state, observation))
    assert_same(mdpo.predict(other, mirror, observation, key), sac.predict(config, state, observation, key))
    for starts in (0, 101):
        config, other = config.replace(learning_starts=starts), other.replace(learning_starts=starts)
        step = jnp.int32(100)
        assert_same(mdpo.act(other, mirror, observation, step, key), sac.act(config, state, observation, step, key))


@DIVERGENCE
def test_the_reference_counts_unless_the_weights_are_equal(divergence):
    config, state, batch = setup(divergence=divergence)
    for weight, counts in [(0.2, True), (0.7, False)]:
        config = config.replace(entropy_weight=weight)
        out, other = (
            gradient_step(config, state.replace(reference=params), batch, jax.random.key(6))[0]
            for params in (state.reference, another_actor())
        )
        assert differ(out.actor, other.actor) == counts
        assert_same(out.critics, other.critics)
        assert_same(out.target_critics, other.target_critics)


# One gradient step


@jax.jit
def reference_step(config, state, batch, key):
    """The same step from the equations, without the library's losses, distributions and optimiser."""
    next_key, actor_key = jax.random.split(key)
    c, weight = config.inverse_step_size, config.entropy_weight
    optimizer = optax.adam(config.learning_rate)

    def step(loss, params, optimizer_state):
        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state

    def distribution(actor, observation):
        policy = state.policy_network.apply(actor, observation)
        return policy.mean, jnp.exp(policy.log_std)

    def log_density(mean, std, u):
        """l of the action tanh(u): the sum over its dimensions of log or log_q."""
        log_p = jax.scipy.stats.norm.logpdf(u, mean, std) - jnp.log(1.0 - jnp.tanh(u) ** 2)
        if config.divergence == "kl":
            return log_p.sum(-1)
        p = jnp.maximum(jnp.exp(log_p), 1e-6)
        return jnp.sum((p ** (config.tsallis_q - 1.0) - 1.0) / (config.tsallis_q - 1.0), -1)

    mean, std = distribution(state.actor, batch.next_observation)
    u = mean + std * jax.random.normal(next_key, mean.shape)
    next_q = state.critic_network.apply(state.target_critics, batch.next_observation, jnp.tanh(u)).min(0)
    future = config.discount * (1.0 - batch.terminated) * (next_q - weight * log_density(mean, std, u))
    target = config.reward_scale * batch.reward + future

    def critic_loss(params):
        q = state.critic_network.apply(params, batch.observation, batch.action)
        return 0.5 * jnp.sum(jnp.mean((q - target) ** 2, 1))

    critics, critic_optimizer = step(critic_loss, state.critics, state.critic_optimizer)

    def policy_loss(actor):
        mean, std = distribution(actor, batch.observation)
        u = mean + std * jax.random.normal(actor_key, mean.shape)
        own = log_density(mean, std, u)
        of_reference = log_density(*distribution(state.reference, batch.observation), u)
        q = state.critic_network.apply(critics, batch.observation, jnp.tanh(u))
        q = q.min(0) if config.policy_value == "min" else q[0]
        factor = config.tsallis_q if config.divergence == "tsallis" else 1.0
        loss = jnp.mean(c * own + factor * (weight - c) * of_reference - q)
        return loss + config.policy_regularization * (jnp.mean(mean**2) + jnp.mean(jnp.log(std) ** 2))

    actor, actor_optimizer = step(policy_loss, state.actor, state.actor_optimizer)
    return policy_loss(state.actor), state.replace(
        actor=actor,
        critics=critics,
        target_critics=jax.tree.map(lambda t, q: 0.9 * t + 0.1 * q, state.target_critics, critics),
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
    )


@DIVERGENCE
@pytest.mark.parametrize("policy_value", ["min", "first"])
def test_gradient_step_equals_the_reference(divergence, policy_value):
    config, state, batch = setup(
        divergence=divergence, policy_value=policy_value, discount=0.9, reward_scale=2.0, policy_regularization=0.0
    )
    state, key = state.replace(reference=another_actor()), jax.random.key(6)
    actors = []
    for changes in ({}, {"policy_regularization": 0.3}, {"entropy_weight": 0.0}, {"inverse_step_size": 0.1}):
        config_now = config.replace(**changes)
        loss, expected = reference_step(config_now, state, batch, key)
        out, metrics = gradient_step(config_now, state, batch, key)
        assert_close(out, expected)
        np.testing.assert_allclose(metrics["actor/loss"], loss, rtol=1e-4)
        assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
        assert_same(out.reference, state.reference)
        actors.append(out.actor)
    assert all(differ(actors[0], actor) for actor in actors[1:])


def test_the_policy_sees_the_least_or_the_first_of_the_critics():
    """Another second critic, where both are fixed: it matters for the least of them alone."""
    for policy_value, counts in [("min", True), ("first", False)]:
        config, state, batch = setup(policy_value=policy_value)
        last = max(state.critics["params"])
        layer = state.critics["params"][last]
        layer = layer | {"kernel": layer["kernel"].at[1].multiply(-3.0)}
        other = state.replace(critics={"params": state.critics["params"] | {last: layer}})
        out, with_other = (gradient_step(config, s, batch, jax.random.key(6))[0] for s in (state, other))
        assert differ(out.actor, with_other.actor) == counts


def policy_of(params, mean, log_std):
    """Actor parameters with the same distribution in every state."""
    params = jax.tree.map(jnp.zeros_like, params["params"])
    return {"params": {**params, "Dense_0": {**params["Dense_0"], "bias": jnp.array([*mean, *log_std])}}}


def test_the_gradient_flows_through_the_action_into_the_reference_s_density():
    """Without a value and entropy, the means go to the reference's; the policy's own density would send them to 0."""
    config, (state, replay) = config_of(discount=0.0, entropy_weight=0.0), begun()
    state = state.replace(
        actor=policy_of(state.actor, [0.5, 0.5], [-1.0, -1.0]),
        reference=policy_of(state.actor, [1.5, -1.5], [-1.0, -1.0]),
        critics=jax.tree.map(jnp.zeros_like, state.critics),
    )
    batch = batch_of(replay).replace(reward=jnp.zeros(16))
    out, metrics = gradient_step(config, state, batch, jax.random.key(6))
    moved = (out.actor["params"]["Dense_0"]["bias"] - state.actor["params"]["Dense_0"]["bias"])[:A]
    np.testing.assert_allclose(moved, [1e-2, -1e-2], rtol=1e-4)  # Adam's first step
    assert_same(out.critics, state.critics)  # nor does the policy's loss teach the critics
    assert_same(out.reference, state.reference)

    # The gradient and the divergence of Gaussians in closed form, with this noise.
    noise = jax.random.normal(jax.random.split(jax.random.key(6))[1], (16, A))
    std, mean, of_reference = np.exp(-1.0), np.array([0.5, 0.5]), np.array([1.5, -1.5])
    difference = mean + std * noise - of_reference
    gradient = 0.7 * np.mean(difference / std**2, 0)
    np.testing.assert_allclose(out.actor_optimizer[0].mu["params"]["Dense_0"]["bias"][:A], 0.1 * gradient, rtol=1e-4)
    divergence = np.mean(np.sum(0.5 * (difference / std) ** 2 - 0.5 * noise**2, 1))
    np.testing.assert_allclose(metrics["actor/divergence"], divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/loss"], 0.7 * divergence, rtol=1e-4)


def test_tsallis_near_one_is_kl():
    config, state, batch = setup()
    policy = state.policy_network.apply(state.actor, batch.observation)
    _, u, _ = policy.sample_pre_tanh_and_log_prob(jax.random.split(jax.random.key(6))[1])
    for params in (state.actor, state.reference):
        log_probs = state.policy_network.apply(params, batch.observation).log_probs_of_pre_tanh(u)
        assert np.min(log_probs) > np.log(1e-6)  # nothing is floored

    def step(divergence, q):
        changed = config.replace(divergence=divergence, tsallis_q=q)
        out, metrics = gradient_step(changed, state, batch, jax.random.key(6))
        learned = (out.actor_optimizer[0].mu, out.critic_optimizer[0].mu)  # linear in the gradients
        return learned, metrics

    def distance(a, b):
        return max(np.max(np.abs(x - y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    kl = step("kl", 1.0)
    assert_close(step("tsallis", 1.0), kl, rtol=1e-4, atol=1e-5)
    assert_close(step("tsallis", 1.0 + 1e-5), kl, rtol=1e-3, atol=1e-4)
    near, far = (distance(step("tsallis", 1.0 + x), kl) for x in (1e-2, 1e-1))
    assert 5.0 < far / near < 20.0  # in proportion to q - 1
    assert distance(step("kl", 2.0), kl) == 0.0  # q is of the other form alone


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    config, state, batch = setup()
    no, yes = jnp.zeros(16, bool), jnp.ones(16, bool)
    going_on, truncated, terminated = (
        gradient_step(config, state, batch.replace(terminated=a, truncated=b), jax.random.key(6))[0]
        for a, b in [(no, no), (no, yes), (yes, no)]
    )
    assert_same(going_on, truncated)
    assert differ(going_on.critics, terminated.critics)


@DIVERGENCE
def test_predictions_are_a_sampled_action_its_value_and_what_entropy_adds(divergence):
    config, state, batch = setup(divergence=divergence)
    action, value, bonus = mdpo.predict(config, state, batch.observation, jax.random.key(6))
    q = state.critic_network.apply(state.critics, batch.observation, action)
    np.testing.assert_allclose(value, q.min(0), rtol=1e-5)
    policy = state.policy_network.apply(state.actor, batch.observation)
    u = np.arctanh(np.asarray(action, np.float64))
    p = np.exp(-0.5 * ((u - policy.mean) / np.exp(policy.log_std)) ** 2 - policy.log_std) / np.sqrt(2.0 * np.pi)
    p = np.maximum(p / (1.0 - np.asarray(action, np.float64) ** 2), 1e-6)
    each = np.log(p) if divergence == "kl" else (p**0.5 - 1.0) / 0.5
    np.testing.assert_allclose(bonus, -0.2 * each.sum(1), rtol=1e-2, atol=1e-3)


# The reference


@pytest.mark.parametrize(("num_envs", "rollout_length", "interval"), [(1, 1, 3), (1, 2, 5), (3, 1, 7), (3, 2, 10)])
def test_the_reference_is_refreshed_where_the_steps_pass_a_multiple_of_m(num_envs, rollout_length, interval):
    config = config_of(rollout_length=rollout_length, reference_interval=interval, gradient_steps=1)
    state, replay, since = setup()[1], begun(num_envs)[1], num_envs * rollout_length
    refreshed = []
    for step in range(since, 4 * interval + 1, since):
        before = state
        assert differ(before.actor, before.reference)
        state, metrics = update(config, before, replay, step, step)
        passed = any(k % interval == 0 for k in range(step - since + 1, step + 1))
        assert_same(state.reference, before.actor if passed else before.reference)
        assert differ(state.actor, before.actor)
        assert (abs(metrics["actor/divergence"]) < 1e-5) == passed  # the refreshed one is used at once
        refreshed.append(passed)
    assert sum(refreshed) >= 3 and not all(refreshed)


def test_several_gradient_steps_have_one_reference():
    """The policy before the first of them; and as many as environment steps since the last update."""
    config, replay = config_of(rollout_length=2, reference_interval=5), begun(2)[1]
    state = setup()[1]
    due, _ = update(config, state, replay, 12)  # 9 to 12
    assert_same(due.reference, state.actor)
    not_due, _ = update(config, state.replace(reference=jax.tree.map(jnp.copy, state.actor)), replay, 24)  # 21 to 24
    assert_same(not_due, due)
    old, _ = update(config, state, replay, 24)
    assert_same(old.reference, state.reference)
    assert differ(old.actor, due.actor)
    for optimizer in (due.actor_optimizer, due.critic_optimizer):
        assert int(optimizer[0].count) == 2 + 4  # of `setup`, and one for each environment step since the last update


def test_the_asked_number_of_gradient_steps():
    config, (state, replay) = config_of(gradient_steps=3), begun(2)
    out, metrics = update(config, state, replay, 100)
    assert int(out.actor_optimizer[0].count) == int(out.critic_optimizer[0].count) == 3
    assert all(x.shape == () and np.isfinite(x) for x in metrics.values())


def test_seeds_share_the_refresh_and_each_is_what_it_is_alone():
    _, replay = begun(1)
    config = config_of(reference_interval=3, gradient_steps=1)
    states = jax.jit(jax.vmap(lambda key: mdpo.init(config, CONTINUOUS, key)))(jax.random.split(jax.random.key(3), 3))
    keys = jax.random.split(jax.random.key(4), 3)
    scales = np.array([1.0, 2.0, -1.0], np.float32)  # of the rewards: replays of their own
    storage = jax.tree.map(lambda x: jnp.stack([x] * 3), replay.storage)
    replays = replay.replace(storage=storage.replace(reward=storage.reward * scales[:, None, None]))
    lifted = jax.jit(jax.vmap(mdpo.update, in_axes=(None, 0, ring.SEED_AXES, None, 0)))
    together, alone = states, [jax.tree.map(lambda x, i=i: x[i], states) for i in range(3)]
    for step in range(2, 5):
        before = together
        together, _ = lifted(config, before, replays, jnp.int32(step), keys)
        assert_same(together.reference, before.reference if step % 3 else before.actor)
        for i in range(3):
            own = replay.replace(storage=jax.tree.map(lambda x, i=i: x[i], replays.storage))
            alone[i], _ = jitted_update(config, alone[i], own, jnp.int32(step), keys[i])
            assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone[i])
    assert differ(alone[0].actor, alone[1].actor)
    assert differ(together.reference, together.actor)


def test_the_first_state_can_be_donated():
    """Reference and targets are copies, in buffers of their own. Not under jit, which would give them those."""
    state = mdpo.init(tiny(mdpo), CONTINUOUS, jax.random.key(0))
    assert_same([state.reference, state.target_critics], [state.actor, state.critics])
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    expected = jax.tree.map(np.array, state)
    out = jax.jit(lambda state: jax.tree.map(lambda x: -x, state), donate_argnums=0)(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert_same(out, jax.tree.map(lambda x: -x, expected))


# Acting


@pytest.mark.parametrize("behaviour", ["sampled", "greedy"])
def test_behaviour_is_uniform_in_the_warm_up_and_then_sampled_or_greedy(behaviour):
    config, state = config_of(learning_starts=50, behaviour=behaviour), begun()[0]
    mean, log_std = np.array([0.3, -0.8]), np.array([-1.0, -0.3])
    state = state.replace(actor=policy_of(state.actor, mean, log_std))  # the reference has another one
    observation, act = np.zeros((20_000, 3), np.float32), jax.jit(functools.partial(mdpo.act, config))
    for step in (0, 49):
        actions, extras = act(state, observation, np.int32(step), jax.random.key(3))
        assert extras == {}
        np.testing.assert_allclose(np.histogram(actions, 4, (-1.0, 1.0))[0] / 40_000, 0.25, atol=0.02)
    for step in (50, 10**6):
        first, other = (act(state, observation, np.int32(step), jax.random.key(k))[0] for k in (3, 4))
        if behaviour == "greedy":
            assert_same(first, other)
            np.testing.assert_allclose(first, np.broadcast_to(np.tanh(mean), first.shape), rtol=1e-5)
        else:
            assert np.mean(first != other) > 0.99
            u = np.arctanh(np.asarray(first, np.float64))
            np.testing.assert_allclose(u.mean(0), mean, atol=0.03)
            np.testing.assert_allclose(u.std(0), np.exp(log_std), rtol=0.03)
    greedy = mdpo.policy(config, state, observation[:5])
    np.testing.assert_allclose(greedy, np.broadcast_to(np.tanh(mean), greedy.shape), rtol=1e-5)


def test_discrete_actions_are_refused_in_one_line_that_names_another_agent():
    with pytest.raises(UserError, match=r"--agent=sac_discrete$") as error:
        mdpo.init(tiny(mdpo), DISCRETE, jax.random.key(0))
    assert "\n" not in str(error.value)
    assert DISCRETE.id in str(error.value)


# Probes: environments whose values are known


def probe_config(**changes):
    sizes = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_capacity": 1024, "learning_starts": 0}
    values = {"learning_rate": 5e-3, "tau": 0.05, "discount": 0.9, "inverse_step_size": 0.1, "entropy_weight": 1e-6}
    return mdpo.Config(**sizes, **(values | {"tsallis_q": 2.0} | changes), reference_interval=50, gradient_steps=1)


def learned(probe, updates, **changes):
    environment, config = probe(), probe_config(**changes)
    state = start(mdpo, config, environment.spec, jax.random.key(0))
    replay = random_experience(environment, rows=1024, num_envs=1)
    state = learn(mdpo, config, state, replay, jax.random.key(1), updates)
    assert int(state.actor_optimizer[0].count) == updates
    return state


def values(state, observations):
    """Q of every critic at a few actions for observations (B,): (actions, N, B)."""
    observations = jnp.asarray(observations, jnp.float32)[:, None]
    actions = [jnp.full_like(observations, a) for a in (-0.9, 0.0, 0.9)]
    return np.stack([state.critic_network.apply(state.critics, observations, a) for a in actions])


def greedy(state, observations):
    return mdpo.policy(probe_config(), state, jnp.asarray(observations, jnp.float32)[:, None])[:, 0]


def test_probe_a_time_limit_is_no_end_of_the_task():
    """Reward 1 for ever is worth 1 / (1 - 0.9) = 10; with the limit of 10 steps as an end it would be below 6.6."""
    np.testing.assert_allclose(values(learned(probes.ConstantReward, 2500, learning_rate=1e-2), [0.0]), 10.0, atol=0.4)


def test_probe_the_value_depends_on_the_observation():
    q = values(learned(probes.ObservationReward, 600), [-1.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([-1.0, 1.0], q.shape), atol=0.1)


@DIVERGENCE
def test_probe_a_later_reward_is_discounted(divergence):
    q = values(learned(probes.DelayedReward, 1000, divergence=divergence), [0.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([0.9, 1.0], q.shape), atol=0.06)


@DIVERGENCE
def test_probe_the_best_action_is_found(divergence):
    np.testing.assert_allclose(greedy(learned(probes.ActionReward, 1500, divergence=divergence), [0.0]), 0.5, atol=0.1)


@DIVERGENCE
def test_probe_the_best_action_depends_on_the_observation(divergence):
    action = greedy(learned(probes.ObservationAction, 1000, divergence=divergence), [-1.0, 1.0])
    np.testing.assert_array_equal(action > 0, [False, True])


@pytest.mark.parametrize(("divergence", "entropy"), [("kl", np.log(2.0)), ("tsallis", 0.5)])
def test_probe_the_value_counts_entropy(divergence, entropy):
    """Where the reward does not depend on the action, uniform actions are best: -l is log 2, or with q = 2, 1 - 1/2."""
    weights = {"inverse_step_size": 1.0, "entropy_weight": 0.5}
    state = learned(probes.ConstantReward, 2500, learning_rate=1e-2, divergence=divergence, **weights)
    expected = (1.0 + 0.9 * 0.5 * entropy) / (1.0 - 0.9)
    np.testing.assert_allclose(values(state, [0.0]), expected, atol=0.4)


def test_probe_in_the_training_loop():
    """Acting, storing and learning together, with a reference that follows the policy."""
    loop = in_graph.Loop(mdpo, probes.ActionReward(), probe_config(), num_lanes=1, num_envs=4)
    carry = loop.start(jax.random.split(jax.random.key(0), 1), np.array([0]))
    first = jax.tree.map(np.array, carry.learner.agent.reference)
    learner = loop.advance(carry, 4 * 1000, lambda: False).learner
    state = jax.tree.map(lambda x: x[0], learner.agent)
    np.testing.assert_allclose(greedy(state, [0.0]), 0.5, atol=0.1)
    assert differ(learner.agent.reference, first)
    assert differ(state.reference, state.actor)
    np.testing.assert_allclose(
        np.tanh(state.policy_network.apply(state.reference, jnp.zeros((1, 1))).mean), 0.5, atol=0.15
    )
    assert int(learner.totals.diverged_at[0]) == -1
