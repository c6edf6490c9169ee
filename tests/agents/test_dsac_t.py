"""DSAC-T: one iteration against a reference, the delay, the target policy, its settings, and the probes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import dsac_t
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

DELAYED = ("actor", "log_alpha", "target_actor", "target_critics", "actor_optimizer", "temperature_optimizer")
EACH_TIME = ("critics", "critic_optimizer", "mean_std", "mean_variance")

gradient_step = jax.jit(dsac_t.gradient_step)
jitted_update = jax.jit(dsac_t.update)


def update(config, state, replay, key, step=0):
    return jitted_update(config, state, replay, jnp.int32(step), jax.random.key(key))


def begin(num_envs=1, **changes):
    """A config, the first state and a full replay."""
    config = tiny(dsac_t, **({"learning_rate": 1e-2, "tau": 0.1, "statistics_tau": 0.2} | changes))
    state = start(dsac_t, config, CONTINUOUS, jax.random.key(0))
    return config, state, full_replay(dsac_t, config, CONTINUOUS, state, num_envs)


def setup(num_envs=1, **changes):
    """The same, some updates later (targets, optimisers and running means differ from their start)."""
    config, state, replay = begin(num_envs, **changes)
    for i in range(3):
        state, _ = gradient_step(config, state, batch_of(replay), jnp.int32(i), jax.random.key(10 + i))
    return config, state, replay


def batch_of(replay, size=16):
    return ring.sample(replay, jax.random.key(5), size)


def fields(state, names):
    return {name: getattr(state, name) for name in names}


def unchanged(a, b):
    """Names of the learned fields that are the same, bit for bit."""
    return {name for name in DELAYED + EACH_TIME if not differ(getattr(a, name), getattr(b, name))}


# One iteration


@jax.jit
def reference_steps(config, state, batch, key):
    """States after a delayed and another iteration, without the library's losses, distributions and optimiser."""
    next_key, actor_key, noise_key = jax.random.split(key, 3)
    alpha = jnp.exp(state.log_alpha)

    def step(gradient, params, optimizer_state, learning_rate):
        updates, optimizer_state = optax.adam(learning_rate).update(gradient, optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state

    def z(params, observation, action):
        outputs = state.critic_network.apply(params, observation, action)
        return outputs[:, :, 0], jnp.log(1.0 + jnp.exp(outputs[:, :, 1]))

    def action_and_log_prob(actor, observation, key):
        policy = state.policy_network.apply(actor, observation)
        std = jnp.exp(policy.log_std)
        u = policy.mean + std * jax.random.normal(key, policy.mean.shape)
        density = jax.scipy.stats.norm.logpdf(u, policy.mean, std) - jnp.log(1.0 - jnp.tanh(u) ** 2)
        return jnp.tanh(u), density.sum(-1)

    next_action, next_log_prob = action_and_log_prob(state.target_actor, batch.next_observation, next_key)
    next_q, next_std = z(state.target_critics, batch.next_observation, next_action)
    least, rows = next_q.argmin(0), jnp.arange(len(batch.reward))
    noise = jnp.clip(jax.random.normal(noise_key, (len(rows),)), -3.0, 3.0)
    future = config.discount * (1.0 - batch.terminated)
    y_q = config.reward_scale * batch.reward + future * (next_q.min(0) - alpha * next_log_prob)
    y_z = y_q + future * next_std[least, rows] * noise

    (q, std), pull_back = jax.vjp(lambda params: z(params, batch.observation, batch.action), state.critics)
    tau = config.statistics_tau
    mean_std, mean_variance = (
        jnp.where(old == -1.0, new.mean(1), (1.0 - tau) * old + tau * new.mean(1))
        for old, new in [(state.mean_std, std), (state.mean_variance, std**2)]
    )
    w = (mean_variance if config.scale == "mean_square" else mean_std**2)[:, None]
    b = config.clip_width * mean_std[:, None]
    if config.critic_gradient == "unadjusted":
        w, b = 1.0 - config.scale_epsilon, config.fixed_boundary
    distance, target = jnp.clip(y_z - q, -b, b), y_q if config.expected_target else y_z
    if config.critic_gradient == "huber":
        huber = lambda x: jnp.where(jnp.abs(x) <= 50.0, x**2 / 2.0, 50.0 * jnp.abs(x) - 1250.0)  # noqa: E731
        rho = jnp.clip(w / (std**2 + 0.1), 0.1, 10.0)
        for_q = rho * jnp.clip(q - target, -50.0, 50.0)
        for_std = rho * (std**2 - huber(distance)) / (std + 0.1)
    else:
        for_q = -(w + config.scale_epsilon) * (target - q) / (std**2 + config.epsilon)
        for_std = -(w + config.scale_epsilon) * (distance**2 - std**2) / (std**3 + config.epsilon)
    (gradient,) = pull_back((for_q / len(rows), for_std / len(rows)))
    critics, critic_optimizer = step(gradient, state.critics, state.critic_optimizer, config.learning_rate)
    without = state.replace(
        critics=critics, critic_optimizer=critic_optimizer, mean_std=mean_std, mean_variance=mean_variance
    )

    def actor_loss(actor):
        action, log_prob = action_and_log_prob(actor, batch.observation, actor_key)
        return jnp.mean(alpha * log_prob - z(state.critics, batch.observation, action)[0].min(0)), log_prob.mean()

    gradient, log_prob = jax.grad(actor_loss, has_aux=True)(state.actor)
    actor, actor_optimizer = step(gradient, state.actor, state.actor_optimizer, config.learning_rate)
    log_alpha, temperature_optimizer = step(
        CONTINUOUS.action_size - log_prob,
        state.log_alpha,
        state.temperature_optimizer,
        config.temperature_learning_rate,
    )
    average = functools.partial(jax.tree.map, lambda t, x: (1.0 - config.tau) * t + config.tau * x)
    delayed = without.replace(
        actor=actor,
        target_actor=average(state.target_actor, actor),
        target_critics=average(state.target_critics, critics),
        log_alpha=log_alpha,
        actor_optimizer=actor_optimizer,
        temperature_optimizer=temperature_optimizer,
    )
    return delayed, without


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"scale": "square_mean"}, marks=pytest.mark.slow),
        pytest.param({"critic_gradient": "huber", "scale": "square_mean"}, marks=pytest.mark.slow),
        {"critic_gradient": "huber", "scale": "square_mean", "num_critics": 3},
        {"critic_gradient": "unadjusted", "expected_target": False, "num_critics": 1, "fixed_boundary": 0.5},
        {"epsilon": 0.02, "scale_epsilon": 0.5, "clip_width": 0.5},
    ],
    ids=["default", "square_mean", "huber", "huber of three", "dsac_v1", "other numbers"],
)
def test_an_iteration_equals_the_reference(changes):
    config, state, replay = setup(discount=0.9, reward_scale=2.0, temperature_learning_rate=3e-2, **changes)
    batch, key = batch_of(replay), jax.random.key(6)
    for iteration, expected in zip((4, 5), reference_steps(config, state, batch, key), strict=True):
        out, metrics = gradient_step(config, state, batch, jnp.int32(iteration), key)
        assert_close(out, expected)
        np.testing.assert_allclose(metrics["temperature/alpha"], np.exp(state.log_alpha), rtol=1e-5)


def test_the_first_iteration_equals_the_reference():
    """The first batch's means are the running means."""
    config, state, replay = begin()
    batch, key = batch_of(replay), jax.random.key(6)
    out, _ = gradient_step(config, state, batch, jnp.int32(0), key)
    assert_close(out, reference_steps(config, state, batch, key)[0])
    _, std = dsac_t.value_distribution(state.critic_network)(state.critics, batch.observation, batch.action)
    np.testing.assert_allclose(out.mean_std, std.mean(1), rtol=1e-5)
    np.testing.assert_allclose(out.mean_variance, (std**2).mean(1), rtol=1e-5)


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    config, state, replay = setup()
    batch, key = batch_of(replay), jax.random.key(6)
    no, yes = jnp.zeros(16, bool), jnp.ones(16, bool)
    going_on, truncated, terminated = (
        gradient_step(config, state, batch.replace(terminated=a, truncated=b), jnp.int32(0), key)[0]
        for a, b in [(no, no), (no, yes), (yes, no)]
    )
    assert_same(going_on, truncated)
    assert differ(going_on.critics, terminated.critics)


def test_all_gradients_are_taken_at_the_old_parameters():
    """What the critics learn in an iteration cannot influence actor and temperature in the same one."""
    config, state, replay = setup()
    batch, key = batch_of(replay), jax.random.key(6)
    outs = [
        gradient_step(config.replace(discount=discount), state, batch.replace(reward=reward), jnp.int32(0), key)[0]
        for discount, reward in [(0.9, batch.reward), (0.1, 50.0 - batch.reward)]
    ]
    assert differ(outs[0].critics, outs[1].critics)
    assert differ(outs[0].actor, state.actor)
    independent = ("actor", "target_actor", "log_alpha", "actor_optimizer", "temperature_optimizer")
    assert_same(*(fields(out, independent) for out in outs))


def test_the_next_action_comes_from_the_target_policy():
    config, state, replay = setup()
    batch, key = batch_of(replay).replace(terminated=jnp.zeros(16, bool)), jax.random.key(6)
    other = start(dsac_t, config, CONTINUOUS, jax.random.key(1)).actor
    out, with_actor, with_target = (
        gradient_step(config, s, batch, jnp.int32(1), key)[0]
        for s in (state, state.replace(actor=other), state.replace(target_actor=other))
    )
    assert_same(fields(with_actor, EACH_TIME), fields(out, EACH_TIME))
    assert differ(with_target.critics, out.critics)


def test_behaviour_and_greedy_actions_come_from_the_actor():
    config, state, _ = setup()
    other = start(dsac_t, config, CONTINUOUS, jax.random.key(1)).actor
    observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    def actions(state):
        behaviour, _ = dsac_t.act(config, state, observation, jnp.int32(10**6), jax.random.key(2))
        return behaviour, dsac_t.policy(config, state, observation)

    assert_same(actions(state.replace(target_actor=other)), actions(state))
    for changed, before in zip(actions(state.replace(actor=other)), actions(state), strict=True):
        assert differ(changed, before)


def test_the_actor_sees_means_alone():
    """Other sigmas, of the same means, leave the actor's step as it is."""
    config, state, replay = setup()
    batch, key = batch_of(replay), jax.random.key(6)
    last = max(state.critics["params"])  # the output layer
    layer = state.critics["params"][last]
    assert layer["bias"].shape[-1] == 2
    layer = layer | {"bias": layer["bias"].at[..., 1].add(2.0)}
    other = state.replace(critics={"params": state.critics["params"] | {last: layer}})
    out, with_other = (gradient_step(config, s, batch, jnp.int32(0), key)[0] for s in (state, other))
    assert differ(out.mean_std, with_other.mean_std)
    assert differ(out.actor, state.actor)
    assert_same(out.actor, with_other.actor)


# The delay


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_temperature_and_all_targets_move_in_every_delay_th_iteration_alone(delay):
    config, state, replay = setup(delay=delay)
    for iteration in range(2 * delay + 1):
        before = state
        state, _ = gradient_step(config, state, batch_of(replay), jnp.int32(iteration), jax.random.key(iteration))
        assert unchanged(state, before) == (set(DELAYED) if iteration % delay else set())


@pytest.mark.parametrize(("rollout_length", "num_envs"), [(1, 1), (20, 2)])
def test_the_delay_alternates_over_updates(rollout_length, num_envs):
    config, state, replay = setup(num_envs, rollout_length=rollout_length, gradient_steps=1)
    moved = []
    for i in range(6, 11):
        before = state
        state, _ = update(config, state, replay, i, i * rollout_length * num_envs)
        moved.append(not unchanged(state, before))
        assert unchanged(state, before) in (set(), set(DELAYED))
    assert moved in ([True, False, True, False, True], [False, True, False, True, False])


@pytest.mark.parametrize(("steps", "expected"), [(3, [2, 1, 2, 1]), (1, [1, 0, 1, 0])])
def test_half_of_several_gradient_steps_are_delayed(steps, expected):
    config, state, replay = begin(gradient_steps=steps)
    counts = [(0, 0, 0)]
    for i in range(4):
        state, metrics = update(config, state, replay, i, i)
        optimizers = (state.critic_optimizer, state.actor_optimizer, state.temperature_optimizer)
        counts.append(tuple(int(optimizer[0].count) for optimizer in optimizers))
        assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
    differences = np.diff(counts, axis=0)
    np.testing.assert_array_equal(differences[:, 0], steps)
    np.testing.assert_array_equal(differences[:, 1], expected)
    np.testing.assert_array_equal(differences[:, 2], expected)


def test_as_many_gradient_steps_as_steps_without_a_setting():
    config, state, replay = begin(2, rollout_length=2)
    out, _ = update(config, state, replay, 2, 12)
    assert int(out.critic_optimizer[0].count) == 4
    assert int(out.actor_optimizer[0].count) == 2


@pytest.mark.parametrize("steps", [1, 3])
def test_seeds_share_the_delay_and_each_is_what_it_is_alone(steps):
    config, _, replay = begin(gradient_steps=steps)
    keys = jax.random.split(jax.random.key(3), 3)
    states = jax.vmap(lambda key: dsac_t.init(config, CONTINUOUS, key))(keys)
    scales = np.array([1.0, 2.0, -1.0], np.float32)  # of the rewards: replays of their own
    storage = jax.tree.map(lambda x: jnp.stack([x] * 3), replay.storage)
    replays = replay.replace(storage=storage.replace(reward=storage.reward * scales[:, None, None]))
    lifted = jax.jit(jax.vmap(dsac_t.update, in_axes=(None, 0, ring.SEED_AXES, None, 0)))
    together, alone = states, [jax.tree.map(lambda x, i=i: x[i], states) for i in range(3)]
    counts = []
    for step in range(4):
        together, _ = lifted(config, together, replays, jnp.int32(step), keys)
        counts.append(together.actor_optimizer[0].count.tolist())
        for i in range(3):
            own = replay.replace(storage=jax.tree.map(lambda x, i=i: x[i], replays.storage))
            alone[i], _ = jitted_update(config, alone[i], own, jnp.int32(step), keys[i])
            assert_close(jax.tree.map(lambda x, i=i: x[i], together), alone[i])
    expected = [1, 1, 2, 2] if steps == 1 else [2, 3, 5, 6]
    assert counts == [[count] * 3 for count in expected]
    assert differ(alone[0].actor, alone[1].actor)


# Settings


def test_the_paper_s_preset():
    preset = dsac_t.PRESETS["paper"]
    expected = {
        "hidden_sizes": (256, 256, 256),
        "activation": "gelu",
        "learning_rate": 1e-4,
        "temperature_learning_rate": 3e-4,
        "discount": 0.99,
        "tau": 0.005,
        "statistics_tau": 0.005,
        "delay": 2,
        "clip_width": 3.0,
        "epsilon": 0.1,
        "scale_epsilon": 0.1,
        "initial_temperature": math.e,
        "batch_size": 256,
        "replay_capacity": 1_000_000,
        "learning_starts": 10_000,
        "rollout_length": 20,
        "gradient_steps": 1,
        "critic_gradient": "adjusted",
        "expected_target": True,
        "num_critics": 2,
        "uniform_warmup": False,
    }
    assert {name: getattr(preset, name) for name in expected} == expected


def test_networks_begin_as_in_the_sheet():
    """log alpha is 1, sigma about softplus(0), log sigma of the policy at most 0.5, targets are copies."""
    state = start(dsac_t, dsac_t.Config(), CONTINUOUS, jax.random.key(0))
    np.testing.assert_allclose(state.log_alpha, 1.0, rtol=1e-6)
    assert_same([state.target_actor, state.target_critics], [state.actor, state.critics])
    rng = np.random.default_rng(0)
    observation, action = rng.normal(size=(200, 3)).astype(np.float32), rng.uniform(-1, 1, (200, 2)).astype(np.float32)
    q, std = dsac_t.value_distribution(state.critic_network)(state.critics, observation, action)
    assert q.shape == std.shape == (2, 200)
    np.testing.assert_allclose(std.mean(1), np.log(2.0), atol=0.2)
    assert np.any(q < 0.0) and np.all(std > 0.0)
    log_std = state.policy_network.apply(state.actor, 1e3 * observation).log_std
    assert log_std.max() == 0.5 and log_std.min() == -20.0


def test_the_dsac_v1_preset_learns_one_critic_from_random_targets():
    preset = dsac_t.PRESETS["dsac_v1"]
    assert preset.critic_gradient == "unadjusted"
    small = {name: getattr(tiny(dsac_t), name) for name in ("hidden_sizes", "batch_size", "replay_capacity")}
    config = preset.replace(learning_starts=0, **small)
    state = start(dsac_t, config, CONTINUOUS, jax.random.key(0))
    assert state.mean_std.shape == (1,) and state.mean_variance.shape == (1,)
    replay = full_replay(dsac_t, config, CONTINUOUS, state, 1)
    out, metrics = update(config, state, replay, 2)
    assert all(np.isfinite(x) for x in metrics.values())
    assert unchanged(out, state) == set()

    # The mean's target has noise of the size of the targets' sigma: the metric of its error shows it.
    batch = batch_of(replay, 4096)
    last = max(state.critics["params"])
    errors = []
    for shift in (-30.0, 5.0):  # of softplus' argument: no sigma, and one of about 5
        layer = state.critics["params"][last]
        layer = layer | {"bias": layer["bias"].at[..., 1].add(shift)}
        targets = {"params": state.critics["params"] | {last: layer}}
        for expected in (False, True):
            changed = config.replace(expected_target=expected)
            _, metrics = gradient_step(
                changed, state.replace(target_critics=targets), batch, jnp.int32(1), jax.random.key(6)
            )
            errors.append(float(metrics["critic/squared_error"]))
    without, expected_without, noisy, expected_noisy = errors
    np.testing.assert_allclose([without, expected_noisy], expected_without, rtol=1e-4)
    assert noisy > expected_without + 5.0  # 0.5 * (0.99 * 5)^2 * 0.8, where 0.8 go on


def test_warm_up_by_the_initial_policy_or_uniform():
    observation, key = np.full((4000, 3), 30.0, np.float32), jax.random.key(3)
    for uniform in (False, True):
        config = tiny(dsac_t, learning_starts=50, uniform_warmup=uniform)
        old, new = (start(dsac_t, config, CONTINUOUS, jax.random.key(k)) for k in (0, 1))
        act = jax.jit(functools.partial(dsac_t.act, config))
        for step in (0, 49, 50):
            actions = np.asarray(act(old, observation, np.int32(step), key)[0])
            by_policy = differ(actions, act(new, observation, np.int32(step), key)[0])
            assert by_policy == (not uniform or step == 50)
            share = np.histogram(actions, 4, (-1.0, 1.0))[0] / 8000
            assert np.allclose(share, 0.25, atol=0.03) == (not by_policy)
            if by_policy:
                assert_same(actions, act(old, observation, np.int32(10**6), key)[0])


def test_a_temperature_that_is_not_learned_stays():
    config, state, replay = begin(learn_temperature=False, initial_temperature=0.2)
    out, metrics = update(config, state, replay, 2)
    np.testing.assert_allclose(np.exp(out.log_alpha), 0.2, rtol=1e-6)
    np.testing.assert_allclose(metrics["temperature/alpha"], 0.2, rtol=1e-6)
    assert unchanged(out, state) == {"log_alpha", "temperature_optimizer"}


def test_the_target_entropy_decides_which_way_the_temperature_goes():
    config, state, replay = setup()
    moves = []
    for scale in (-10.0, 10.0):
        out, _ = update(config.replace(target_entropy_scale=scale), state, replay, 2)
        moves.append(float(out.log_alpha - state.log_alpha))
    assert tuple(np.sign(moves)) == (1, -1)


def test_discrete_actions_are_refused_in_one_line_that_names_another_agent():
    with pytest.raises(UserError, match=r"--agent=sac_discrete$") as error:
        dsac_t.init(tiny(dsac_t), DISCRETE, jax.random.key(0))
    assert "\n" not in str(error.value)
    assert DISCRETE.id in str(error.value)


# Probes: environments whose values are known


def probe_config(**changes):
    sizes = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_capacity": 1024, "learning_starts": 0}
    values = {"learning_rate": 5e-3, "tau": 0.1, "discount": 0.9, "initial_temperature": 1e-6}
    return dsac_t.Config(**sizes, **(values | changes), learn_temperature=False, gradient_steps=1)


def learned(probe, updates, **changes):
    environment = probe()
    config = probe_config(**changes)
    state = start(dsac_t, config, environment.spec, jax.random.key(0))
    replay = random_experience(environment, rows=1024, num_envs=1)
    state = learn(dsac_t, config, state, replay, jax.random.key(1), updates)
    assert int(state.critic_optimizer[0].count) == updates
    assert int(state.actor_optimizer[0].count) == updates // 2
    return state


@jax.jit
def values(state, observations):
    """Mean and sigma of every critic at a few actions for observations (B,): each (actions, N, B)."""
    observations = jnp.asarray(observations, jnp.float32)[:, None]
    actions = jnp.broadcast_to(jnp.array([-0.9, 0.0, 0.9])[:, None, None], (3, *observations.shape))
    outputs = jax.vmap(lambda a: state.critic_network.apply(state.critics, observations, a))(actions)
    return outputs[..., 0], jax.nn.softplus(outputs[..., 1])


def greedy(state, observations):
    return dsac_t.policy(probe_config(), state, jnp.asarray(observations, jnp.float32)[:, None])[:, 0]


def test_probe_a_time_limit_is_no_end_of_the_task():
    """Reward 1 for ever is worth 1 / (1 - 0.9) = 10; with the limit of 10 steps as an end it would be below 6.6."""
    np.testing.assert_allclose(
        values(learned(probes.ConstantReward, 2500, learning_rate=1e-2), [0.0])[0], 10.0, atol=0.4
    )


def test_probe_one_step_without_uncertainty():
    state = start(dsac_t, probe_config(), probes.OneStep().spec, jax.random.key(0))
    np.testing.assert_allclose(values(state, [0.0])[1], 0.69, atol=0.2)
    q, std = values(learned(probes.OneStep, 600), [0.0])
    np.testing.assert_allclose(q, 1.0, atol=0.05)
    assert np.all(std < 0.15)


def test_probe_the_value_depends_on_the_observation():
    q, std = values(learned(probes.ObservationReward, 600), [-1.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([-1.0, 1.0], q.shape), atol=0.1)
    assert np.all(std < 0.3)


def test_probe_a_later_reward_is_discounted():
    q, _ = values(learned(probes.DelayedReward, 1000), [0.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([0.9, 1.0], q.shape), atol=0.06)


class UnknownReward(probes.ObservationReward):
    """The same reward, of which the observation says nothing: 1 or -1. Value 0, standard deviation 1."""

    def reset(self, key):
        state, observation = super().reset(key)
        return state, jnp.zeros_like(observation)

    def step(self, state, action):
        state, step = super().step(state, action)
        return state, step._replace(observation=jnp.zeros_like(step.observation))


def test_probe_sigma_is_the_deviation_of_the_return():
    """Or, for the Huber form, that of half the variance."""
    for critic_gradient, expected in [("adjusted", 1.0), ("huber", math.sqrt(0.5))]:
        q, std = values(learned(UnknownReward, 1000, critic_gradient=critic_gradient), [0.0])
        np.testing.assert_allclose(q, 0.0, atol=0.15)
        np.testing.assert_allclose(std, expected, atol=0.08)


def test_probe_the_best_action_is_found():
    np.testing.assert_allclose(greedy(learned(probes.ActionReward, 1500), [0.0]), 0.5, atol=0.1)


def test_probe_the_best_action_depends_on_the_observation():
    action = greedy(learned(probes.ObservationAction, 1000), [-1.0, 1.0])
    np.testing.assert_array_equal(action > 0, [False, True])


def test_probe_a_temperature_pays_for_entropy():
    """Where the reward does not depend on the action, uniform actions are best, and the value counts their entropy."""
    alpha, discount = 0.1, 0.9
    state = learned(probes.ConstantReward, 2500, learning_rate=1e-2, initial_temperature=alpha)
    expected = (1.0 + discount * alpha * np.log(2.0)) / (1.0 - discount)
    np.testing.assert_allclose(values(state, [0.0])[0], expected, atol=0.4)


def test_probe_in_the_training_loop():
    """Acting, storing and learning together; the loop's steps alternate the delay."""
    loop = in_graph.Loop(dsac_t, probes.DelayedReward(), probe_config(), num_lanes=1, num_envs=4)
    carry = loop.start(jax.random.split(jax.random.key(0), 1), np.array([0]))
    learner = loop.advance(carry, 4 * 1000, lambda: False).learner
    state = jax.tree.map(lambda x: x[0], learner.agent)
    assert int(state.critic_optimizer[0].count) == 1000
    assert int(state.actor_optimizer[0].count) == 500
    q, _ = values(state, [0.0, 1.0])
    np.testing.assert_allclose(q.mean((0, 1)), [0.9, 1.0], atol=0.06)
    assert int(learner.totals.diverged_at[0]) == -1
