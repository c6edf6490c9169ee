"""On-policy MDPO: one step is the vanilla policy gradient, ten are an Adam run, the step size falls, and the probes."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import mdpo_on_policy, ppo
from offpolicy_jax import environments
from offpolicy_jax import replay as ring
from offpolicy_jax.training import Settings, train
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_close, assert_same, differ, full_replay, start

SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
ONE = mdpo_on_policy.Config(
    hidden_sizes=(8,),
    rollout_length=16,
    gradient_steps=1,
    value_epochs=1,
    value_minibatches=1,
    learning_rate=1e-2,
    value_learning_rate=2e-2,
    anneal_steps=0,
    max_gradient_norm=0.05,
)
STEP, KEY = np.int32(64), jax.random.key(2)


@jax.jit
def update(config, state, replay, step=STEP, key=KEY):
    return mdpo_on_policy.update(config, state, replay, step, key)


@functools.cache
def setup(spec):
    """A state that has moved from its start, and a full ring of its experience."""
    state = start(mdpo_on_policy, ONE, spec, jax.random.key(0))
    replay = full_replay(mdpo_on_policy, ONE, spec, state)
    return update(ONE.replace(max_gradient_norm=np.inf), state, replay)[0], replay


def rows(tree):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def experience(config, state, replay):
    """Rows of the ring, standardised advantages and value targets, by PPO's tested functions."""
    value = lambda o: state.value_network.apply(state.parameters["value"], o)  # noqa: E731
    data = ppo.rollouts(replay, value, config.discount, config.gae_lambda)
    advantage = (data.advantage - jnp.mean(data.advantage)) / jnp.std(data.advantage)
    return data.transitions, advantage, data.target, data.value


def descent(config, loss, params, optimizer, rate, steps):
    """`steps` full-batch steps, written out with optax."""
    chain = optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(rate, eps=1e-5))
    state = (optax.EmptyState(), jax.tree.map(jnp.asarray, optimizer))
    for _ in range(steps):
        updates, state = chain.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


@SPECS
def test_one_step_is_the_vanilla_policy_gradient_s(spec):
    """Whatever the step size t: at pi = pi_k the divergence has no gradient."""
    state, replay = setup(spec)
    transitions, advantage, _, _ = experience(ONE, state, replay)

    def loss(params):
        policy = state.policy_network.apply(params, transitions.observation)
        return -jnp.mean(ppo.log_prob(policy, transitions) * advantage)

    expected = descent(ONE, loss, state.parameters["policy"], state.optimizers["policy"], 1e-2, 1)
    for step_size in (1.0, 0.01):
        out, _ = update(ONE.replace(step_size=step_size), state, replay)
        assert_close(out.parameters["policy"], expected, rtol=1e-3, atol=2e-5)


@SPECS
def test_ten_steps_descend_the_mirror_descent_objective(spec):
    """KL(new || old): the closed form of the policy's own `kl`."""
    config = ONE.replace(gradient_steps=10, step_size=0.05, learning_rate=3e-2)
    state, replay = setup(spec)
    transitions, advantage, _, _ = experience(config, state, replay)
    old = state.policy_network.apply(state.parameters["policy"], transitions.observation)

    def loss(params):
        policy = state.policy_network.apply(params, transitions.observation)
        ratio = jnp.exp(ppo.log_prob(policy, transitions) - ppo.log_prob(old, transitions))
        return -jnp.mean(ratio * advantage) + jnp.mean(policy.kl(old)) / 0.05

    expected = descent(config, loss, state.parameters["policy"], state.optimizers["policy"], 3e-2, 10)
    out, metrics = update(config, state, replay)
    assert_close(out.parameters["policy"], expected, rtol=2e-2, atol=1e-3)
    moved = state.policy_network.apply(out.parameters["policy"], transitions.observation)
    np.testing.assert_allclose(metrics["actor/kl"], jnp.mean(moved.kl(old)), rtol=1e-3)
    freer, less_held = update(config.replace(step_size=10.0), state, replay)
    assert less_held["actor/kl"] > 2.0 * metrics["actor/kl"]
    assert differ(freer.parameters["policy"], out.parameters["policy"])


def test_values_have_an_optimiser_of_their_own():
    state, replay = setup(CONTINUOUS)
    transitions, _, target, old = experience(ONE, state, replay)

    def loss(params):
        value = state.value_network.apply(params, transitions.observation)
        near = old + jnp.clip(value - old, -0.2, 0.2)
        return 0.5 * jnp.mean(jnp.maximum((value - target) ** 2, (near - target) ** 2))

    expected = descent(ONE, loss, state.parameters["value"], state.optimizers["value"], 2e-2, 1)
    out, _ = update(ONE, state, replay)
    assert_close(out.parameters["value"], expected, rtol=1e-3, atol=2e-5)
    other, _ = update(ONE.replace(value_learning_rate=1e-3), state, replay)
    assert_same(other.parameters["policy"], out.parameters["policy"])
    assert differ(other.parameters["value"], out.parameters["value"])
    other, _ = update(ONE.replace(learning_rate=1e-3), state, replay)
    assert_same(other.parameters["value"], out.parameters["value"])
    assert differ(other.parameters["policy"], out.parameters["policy"])


def test_the_step_size_falls_from_the_first_to_one_update_s_share():
    state, replay = setup(DISCRETE)
    config = ONE.replace(anneal_steps=320, step_size=0.5)  # updates of 32 steps: ten of them
    sizes = [float(update(config, state, replay, np.int32(32 * k))[1]["actor/step_size"]) for k in range(1, 13)]
    np.testing.assert_allclose(sizes, 0.5 * np.array([*np.arange(10, 0, -1), 1, 1]) / 10, rtol=1e-4)
    assert update(ONE, state, replay, np.int32(3200))[1]["actor/step_size"] == 1.0


def test_a_larger_divergence_weight_late_in_a_run():
    state, replay = setup(DISCRETE)
    config = ONE.replace(anneal_steps=320, gradient_steps=10, learning_rate=5e-2, step_size=0.1)
    early, late = (update(config, state, replay, np.int32(s))[1]["actor/kl"] for s in (32, 320))
    assert late < early


def test_rows_that_hold_nothing_do_not_count():
    state, replay = setup(DISCRETE)
    data = jax.tree.map(lambda x: x[:8], replay.storage)
    example = jax.tree.map(lambda x: x[0, 0], data)
    small, large = (ring.add(ring.init(size, example, 2), data) for size in (16, 32))
    first, second = (update(ONE.replace(gradient_steps=5), state, r)[0] for r in (small, large))
    assert_close(first.parameters, second.parameters, rtol=1e-4, atol=1e-5)


def test_a_truncated_episode_is_bootstrapped():
    state, replay = setup(DISCRETE)
    storage = replay.storage.replace(terminated=jnp.zeros((16, 2), bool), truncated=jnp.ones((16, 2), bool))
    cut = replay.replace(storage=storage)
    ended = replay.replace(storage=storage.replace(terminated=jnp.ones((16, 2), bool)))
    assert differ(*(update(ONE, state, r)[0].parameters for r in (cut, ended)))


# The same without the library's functions: sums over each environment, densities and divergences written out.


def by_hand(config, state, replay):
    """Observations (N, ...), stored samples, standardised advantages, advantages and values of a full ring."""
    storage = jax.tree.map(lambda x: np.roll(x, -int(replay.position), 0), replay.storage)
    value = lambda o: np.asarray(state.value_network.apply(state.parameters["value"], rows(o)), np.float64)  # noqa: E731
    length, num_envs = storage.reward.shape
    v = value(storage.observation).reshape(length, num_envs)
    next_v = value(storage.next_observation).reshape(length, num_envs)
    advantage = np.zeros((length, num_envs))
    for e in range(num_envs):
        for t in range(length):
            weight = 1.0
            for k in range(t, length):
                future = 0.0 if storage.terminated[k, e] else config.discount * next_v[k, e]
                advantage[t, e] += weight * (storage.reward[k, e] + future - v[k, e])
                weight *= config.discount * config.gae_lambda
                if storage.terminated[k, e] or storage.truncated[k, e]:
                    break
    advantage = advantage.reshape(-1)
    sample = storage.extras.get("sample", storage.action)
    standardised = (advantage - advantage.mean()) / advantage.std()
    return rows(storage.observation), rows(sample), standardised, advantage, v.reshape(-1)


def log_density(policy, sample):
    if hasattr(policy, "logits"):
        return jnp.log(jax.nn.softmax(policy.logits)[np.arange(len(sample)), sample])
    return jnp.sum(jax.scipy.stats.norm.logpdf(sample, policy.mean, jnp.exp(policy.log_std)), -1)


def divergence(policy, other):
    """KL(policy || other) of each state."""
    if hasattr(policy, "logits"):
        p, q = jax.nn.softmax(policy.logits), jax.nn.softmax(other.logits)
        return jnp.sum(p * jnp.log(p / q), -1)
    variance, of_other = jnp.exp(2.0 * policy.log_std), jnp.exp(2.0 * other.log_std)
    return 0.5 * jnp.sum((variance + (policy.mean - other.mean) ** 2) / of_other - jnp.log(variance / of_other) - 1, -1)


@SPECS
@pytest.mark.parametrize(("step", "left"), [(32, 1.0), (352, 0.5)])
def test_ten_steps_of_the_equations(spec, step, left):
    """Half-way through the annealing, t is half of what it was: the divergence counts twice."""
    config = ONE.replace(gradient_steps=10, step_size=0.8, learning_rate=0.1, anneal_steps=640, gae_lambda=0.7)
    state, replay = setup(spec)
    observation, sample, advantage, _, _ = by_hand(config, state, replay)
    policy = state.policy_network.apply
    old, losses, entropies = policy(state.parameters["policy"], observation), [], []

    def loss(params):
        new = policy(params, observation)
        ratio = jnp.exp(log_density(new, sample) - log_density(old, sample))
        return -jnp.mean(ratio * advantage) + jnp.mean(divergence(new, old)) / (0.8 * left)

    for m in range(11):
        params = descent(config, loss, state.parameters["policy"], state.optimizers["policy"], 0.1, m)
        losses.append(loss(params))
        entropies.append(jnp.mean(policy(params, observation).entropy()))
    out, metrics = update(config, state, replay, np.int32(step))
    assert_close(out.parameters["policy"], params, rtol=2e-3, atol=2e-4)
    assert int(out.optimizers["policy"][0].count) == int(state.optimizers["policy"][0].count) + 10
    new = policy(params, observation)
    there, back = np.mean(divergence(new, old)), np.mean(divergence(old, new))
    assert abs(there - back) > 0.02 * there or left < 1.0  # the other direction would show
    np.testing.assert_allclose(metrics["actor/kl"], there, rtol=3e-3)
    np.testing.assert_allclose(metrics["actor/step_size"], 0.8 * left, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/loss"], np.mean(losses[:10]), rtol=2e-3, atol=1e-5)  # before each step
    np.testing.assert_allclose(metrics["actor/entropy"], np.mean(entropies[:10]), rtol=1e-4)


ENDINGS = {"neither": (False, False), "truncated": (False, True), "terminated": (True, False)}


@pytest.mark.parametrize("ending", [*ENDINGS, "mixed"])
def test_advantages_bootstrap_at_a_truncation_alone(ending):
    """At the old values their loss is half the mean square of the advantages, and a step's gradient holds them all."""
    state, replay = setup(CONTINUOUS)
    if ending != "mixed":
        flags = dict(zip(("terminated", "truncated"), (jnp.full((16, 2), x) for x in ENDINGS[ending]), strict=True))
        replay = replay.replace(storage=replay.storage.replace(**flags))
    config = ONE.replace(discount=0.9, gae_lambda=0.6)
    observation, sample, standardised, advantage, v = by_hand(config, state, replay)
    out, metrics = update(config, state, replay)
    np.testing.assert_allclose(metrics["critic/loss"], 0.5 * np.mean(advantage**2), rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/value_mean"], np.mean(v), rtol=1e-4, atol=1e-6)
    policy = state.policy_network.apply
    loss = lambda params: -jnp.mean(log_density(policy(params, observation), sample) * standardised)  # noqa: E731
    expected = descent(config, loss, state.parameters["policy"], state.optimizers["policy"], 1e-2, 1)
    assert_close(out.parameters["policy"], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("value_clip", [0.02, np.inf])
def test_values_learn_in_epochs_of_shuffled_minibatches(value_clip):
    config = ONE.replace(value_epochs=3, value_minibatches=2, value_clip=value_clip)
    state, replay = setup(CONTINUOUS)
    observation, _, _, advantage, old = by_hand(config, state, replay)
    chain = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(2e-2, eps=1e-5))
    params, adam, losses, clipped = state.parameters["value"], state.optimizers["value"], [], []
    carried = (optax.EmptyState(), jax.tree.map(jnp.asarray, adam))
    for key in jax.random.split(KEY, 3):
        for part in jax.random.permutation(key, 32).reshape(2, 16):

            def loss(params, part=part):
                value = state.value_network.apply(params, observation[part])
                near = jnp.clip(value, old[part] - value_clip, old[part] + value_clip)
                target = (old + advantage)[part]
                clipped.append(jnp.mean(near != value))
                return 0.5 * jnp.mean(jnp.maximum((value - target) ** 2, (near - target) ** 2))

            losses.append(loss(params))
            updates, carried = chain.update(jax.grad(loss)(params), carried, params)
            params = optax.apply_updates(params, updates)
    assert bool(clipped[-2] > 0.2) == np.isfinite(value_clip)  # the last is a tracer
    out, metrics = update(config, state, replay)
    assert_close(out.parameters["value"], params, rtol=2e-3, atol=1e-4)
    assert int(out.optimizers["value"][0].count) == int(adam[0].count) + 6
    assert int(out.optimizers["policy"][0].count) == int(state.optimizers["policy"][0].count) + 1
    np.testing.assert_allclose(metrics["critic/loss"], np.mean(losses), rtol=1e-3)


def test_learning_rates_of_zero_hold_policy_and_values_each_by_itself():
    config, (state, replay) = ONE.replace(gradient_steps=3, value_epochs=3), setup(DISCRETE)
    for still, moving, change in [("policy", "value", "learning_rate"), ("value", "policy", "value_learning_rate")]:
        out, _ = update(config.replace(**{change: 0.0}), state, replay)
        both, _ = update(config, state, replay)
        assert_same(out.parameters[still], state.parameters[still])
        assert_same(out.parameters[moving], both.parameters[moving])
        assert_same(out.optimizers[moving], both.optimizers[moving])
        assert differ(both.parameters[still], state.parameters[still])


@pytest.mark.parametrize("anneal_steps", [320, 330, 340])
def test_the_step_size_never_reaches_zero(anneal_steps):
    """A run is whole updates, so its last one may end after the annealing; one that goes on keeps what is left."""
    state, replay = setup(DISCRETE)
    config = ONE.replace(anneal_steps=anneal_steps, step_size=0.5)
    updates = -(-anneal_steps // 32)
    sizes = [
        float(update(config, state, replay, np.int32(32 * k))[1]["actor/step_size"]) for k in range(1, updates + 1)
    ]
    np.testing.assert_allclose(sizes[0], 0.5)
    np.testing.assert_allclose(sizes[-1], 0.5 * 32 / anneal_steps, rtol=1e-4)
    assert np.all(np.diff(sizes[:-1]) < 0.0) and sizes[-1] <= sizes[-2]
    for later in (10**4, 2**30):
        out, metrics = update(config, state, replay, np.int32(later))
        assert metrics["actor/step_size"] == np.float32(sizes[-1])
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((out, metrics)))


def test_a_step_size_that_is_not_annealed_stays():
    """Nor does it depend on the length of a rollout."""
    state, replay = setup(DISCRETE)
    for rollout_length in (1, 16):
        config = ONE.replace(anneal_steps=0, step_size=0.3, rollout_length=rollout_length)
        for step in (32, 320, 10**6):
            assert update(config, state, replay, np.int32(step))[1]["actor/step_size"] == np.float32(0.3)


def test_metrics_of_a_ring_that_is_half_empty_are_those_of_its_rows():
    state, replay = setup(CONTINUOUS)
    data = jax.tree.map(lambda x: x[:8], replay.storage)
    config, example = ONE.replace(gradient_steps=5, value_epochs=2), jax.tree.map(lambda x: x[0, 0], data)
    small, large = (update(config, state, ring.add(ring.init(size, example, 2), data)) for size in (16, 32))
    assert_close(small, large, rtol=1e-3, atol=1e-5)
    whole, _ = update(config, state, replay)
    assert differ(jax.tree.leaves(whole.parameters)[0], jax.tree.leaves(small[0].parameters)[0])


def test_it_begins_acts_and_predicts_as_ppo():
    for spec in (CONTINUOUS, DISCRETE):
        state = start(mdpo_on_policy, ONE, spec, jax.random.key(3))
        config = ppo.Config(hidden_sizes=(8,))
        other = start(ppo, config, spec, jax.random.key(3))
        assert_same(state.parameters, other.parameters)
        for optimizer in state.optimizers.values():
            assert int(optimizer[0].count) == 0
        observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        assert_same(mdpo_on_policy.act(ONE, state, observation, STEP, KEY), ppo.act(config, other, observation, 0, KEY))
        assert_same(mdpo_on_policy.policy(ONE, state, observation), ppo.policy(config, other, observation))
        assert_same(mdpo_on_policy.predict(ONE, state, observation, KEY), ppo.predict(config, other, observation, KEY))


def test_without_hidden_layers_it_is_linear():
    config = ONE.replace(hidden_sizes=())
    state = start(mdpo_on_policy, config, CONTINUOUS, jax.random.key(0))
    replay = full_replay(mdpo_on_policy, config, CONTINUOUS, state)
    state, _ = update(config, state, replay)
    observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    policy = lambda x: state.policy_network.apply(state.parameters["policy"], x).mean  # noqa: E731
    value = lambda x: state.value_network.apply(state.parameters["value"], x)  # noqa: E731
    for at in (policy, value):
        slope = at(2.0 * observation) - at(observation)
        np.testing.assert_allclose(slope, at(observation) - at(0.0 * observation), rtol=1e-3, atol=1e-5)
        assert np.max(np.abs(slope)) > 1e-3


# Learning


@pytest.mark.parametrize("discrete", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_learns_which_action_fits_the_observation(discrete):
    environment = probes.ObservationAction(discrete=discrete)
    environments.register("probe/fits", lambda num_envs: environment)
    config = mdpo_on_policy.Config(hidden_sizes=(32,), rollout_length=64, value_minibatches=4, learning_rate=1e-2)
    settings = Settings("probe/fits", steps=20_480, seeds=2, num_envs=4, eval_every=20_480, progress=False)
    result = train(mdpo_on_policy, settings, config)
    np.testing.assert_allclose(list(result.summary["final_return"].values()), 1.0)


def test_a_run_on_a_host_environment():
    settings = Settings("InvertedPendulum-v5", 128, 2, eval_every=64, eval_episodes=1, progress=False)
    result = train(mdpo_on_policy, settings, ONE.replace(rollout_length=64))
    assert np.all(np.isfinite(result.table["return"]))


def test_a_run_anneals_over_its_own_steps(tmp_path):
    """Four updates of 16 steps in 2 environments; the metrics are one update's each."""
    settings = Settings("InvertedPendulum-v5", 128, 2, num_envs=2, eval_every=32, eval_episodes=1, progress=False)
    settings = dataclasses.replace(settings, run_dir=str(tmp_path / "run"))
    config = ONE.replace(anneal_steps=-1, step_size=2.0, gradient_steps=3, value_epochs=2, value_minibatches=4)
    result = train(mdpo_on_policy, settings, config)
    with open(tmp_path / "run/metrics.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["seed"] for row in table] == ["0", "1"] * 4
    np.testing.assert_allclose([float(row["actor/step_size"]) for row in table[::2]], [2.0, 1.5, 1.0, 0.5], rtol=1e-5)
    assert all(float(row["actor/kl"]) > 0.0 for row in table)
    for name, count in (("policy", 4 * 3), ("value", 4 * 2 * 4)):
        np.testing.assert_array_equal(result.states.optimizers[name][0].count, count)
