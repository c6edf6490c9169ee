"""PROPS: PPO with a buffer where behaviour updates are off, what the behaviour learns from, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo, props
from offpolicy_jax import environments
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import Settings, train
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, Transition
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_close, assert_same, branches, differ, full_replay, start

SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
TARGET = ppo.Config(
    hidden_sizes=(8,), rollout_length=8, epochs=2, minibatches=2, learning_rate=1e-2, anneal_steps=0, buffer_batches=2
)
ONE = props.Config(target=TARGET, rollout_length=4, epochs=1, minibatches=1, learning_rate=1e-2, target_kl=np.inf)
DUE, NOT_DUE, KEY = np.int32(32), np.int32(24), jax.random.key(2)  # two environments: n is 16 steps, m is 8


@jax.jit
def update(config, state, replay, step, key=KEY):
    return props.update(config, state, replay, step, key)


@functools.cache
def setup(spec):
    """A state whose target has moved from its start, and a full ring of its experience."""
    state = start(props, ONE, spec, jax.random.key(0))
    replay = full_replay(props, ONE, spec, state)  # 16 rows of two environments
    return update(ONE, state, replay, DUE)[0], replay


def likelihood(state, policy, replay, rows=slice(None)):
    """Mean log pi of the ring's actions."""
    data = jax.tree.map(lambda x: x[rows].reshape(-1, *x.shape[2:]), replay.storage)
    return float(jnp.mean(ppo.log_prob(state.target.policy_network.apply(policy, data.observation), data)))


def partly_filled(replay, rows):
    """The oldest rows alone, in a ring of the same size."""
    example = jax.tree.map(lambda x: x[0, 0], replay.storage)
    return ring.add(ring.init(replay.capacity, example, 2), jax.tree.map(lambda x: x[:rows], replay.storage))


@pytest.mark.parametrize(
    ("discrete", "batches", "num_envs"), [(False, 2, 1), pytest.param(True, 1, 2, marks=pytest.mark.slow)]
)
def test_without_behaviour_updates_it_is_ppo_with_a_buffer(discrete, batches, num_envs):
    """Whole runs, bit for bit."""
    environment = probes.ObservationAction(discrete=discrete)
    environments.register("probe/same", lambda _: environment)
    target = TARGET.replace(buffer_batches=batches, anneal_steps=-1)
    settings = Settings("probe/same", steps=160, seeds=2, num_envs=num_envs, eval_every=80, progress=False)
    alone = train(ppo, settings, target)
    off = train(props, settings, props.Config(target=target, rollout_length=4, learning_rate=0.0, minibatches=2))
    assert_same(off.states.target.parameters, alone.states.parameters)
    assert_same(off.states.target.optimizer, alone.states.optimizer)
    assert_same(off.states.behaviour, alone.states.parameters["policy"])
    np.testing.assert_array_equal(off.table["return"], alone.table["return"])
    on = train(props, settings, props.Config(target=target, rollout_length=4, learning_rate=1e-2, minibatches=2))
    assert differ(on.states.target.parameters, alone.states.parameters)


@SPECS
def test_the_behaviour_makes_the_data_less_likely(spec):
    state, replay = setup(spec)
    for config in (ONE, ONE.replace(epochs=4, minibatches=4), props.PRESETS["ros"].replace(target=TARGET)):
        out, _ = update(config.replace(learning_rate=1e-3), state, replay, NOT_DUE)
        rows = slice(config.rollout_length, None)
        target = out.target.parameters["policy"]
        assert likelihood(out, out.behaviour, replay, rows) < likelihood(out, target, replay, rows)
        assert_same(out.target, state.target)


def test_no_seed_pays_for_a_target_update_that_is_not_due():
    state, replay = setup(DISCRETE)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    assert branches(props, ONE, states, replay) == 1


@SPECS
def test_one_full_batch_step_is_ros(spec):
    """Adam's first step along the sign-correct gradient of the mean log-likelihood, from the target."""
    state, replay = setup(spec)
    state = state.replace(optimizer=start(props, ONE, spec, KEY).optimizer)
    out, metrics = update(ONE.replace(max_gradient_norm=np.inf), state, replay, NOT_DUE)
    data = jax.tree.map(lambda x: x[4:].reshape(-1, *x.shape[2:]), replay.storage)
    network, policy = state.target.policy_network, state.target.parameters["policy"]
    gradient = jax.grad(lambda p: jnp.mean(ppo.log_prob(network.apply(p, data.observation), data)))(policy)
    expected = jax.tree.map(lambda p, g: p - 1e-2 * g / (jnp.abs(g) + 1e-5), policy, gradient)
    assert_close(out.behaviour, expected, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose([metrics["behaviour/kl"], metrics["behaviour/clip_fraction"]], 0.0, atol=1e-6)
    np.testing.assert_allclose(metrics["behaviour/loss"], 1.0, rtol=1e-5)
    assert metrics["behaviour/steps"] == 1.0
    # Adam hides the gradient's size; its first moment does not. The KL adds nothing at the target, whatever its weight.
    for weight in (0.0, 1e2):
        out, _ = update(ONE.replace(max_gradient_norm=np.inf, kl_weight=weight), state, replay, NOT_DUE)
        assert_close(out.optimizer[0].mu, jax.tree.map(lambda g: 0.1 * g, gradient), rtol=1e-3, atol=1e-5)


def test_each_update_starts_from_the_new_target():
    """Ratios are of the target as it is after its own update: none has moved at the first step."""
    state, replay = setup(DISCRETE)
    moved = state.replace(behaviour=jax.tree.map(lambda x: x + 1.0, state.behaviour))
    for step in (DUE, NOT_DUE):
        first, metrics = update(ONE, state, replay, step)
        second, _ = update(ONE, moved, replay, step)
        assert_same(first, second)
        np.testing.assert_allclose(metrics["behaviour/loss"], 1.0, rtol=1e-5)
        np.testing.assert_allclose(metrics["behaviour/kl"], 0.0, atol=1e-6)
        off, _ = update(ONE.replace(learning_rate=0.0), moved, replay, step)
        assert_same(off.behaviour, off.target.parameters["policy"])


def test_the_target_learns_every_n_steps_and_as_ppo_would():
    state, replay = setup(CONTINUOUS)
    learned, metrics = update(ONE, state, replay, DUE)
    alone, expected = jax.jit(ppo.update)(TARGET, state.target, replay, DUE, KEY)
    assert_same(learned.target, alone)
    assert set(expected) == set(ppo.METRICS)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    for step in (8, 24, 40):
        waited, later = update(ONE, learned, replay, np.int32(step))
        assert_same(waited.target, learned.target)
        for name in expected:  # what was last learned stays until the target learns again
            assert later[name] == metrics[name]


def changes_the_behaviour(replay, row):
    """Whether another action in a row gives another behaviour."""
    state, _ = setup(DISCRETE)
    action = replay.storage.action.at[row].set((replay.storage.action[row] + 1) % 4)
    changed = replay.replace(storage=replay.storage.replace(action=action))
    return differ(*(update(ONE, state, r, NOT_DUE)[0].behaviour for r in (replay, changed)))


def test_a_full_replay_gives_all_but_what_the_next_steps_evict():
    _, replay = setup(DISCRETE)
    assert [changes_the_behaviour(replay, row) for row in (0, 3, 4, 15)] == [False, False, True, True]
    turned = ring.add(replay, jax.tree.map(lambda x: x[:2], replay.storage))  # the oldest row is now the third
    assert [changes_the_behaviour(turned, row) for row in (0, 1, 2, 5, 6)] == [True, True, False, False, True]


def test_a_replay_that_is_partly_filled_gives_all_it_has():
    _, replay = setup(DISCRETE)
    half = partly_filled(replay, 8)
    assert [changes_the_behaviour(half, row) for row in (0, 3, 7, 8, 15)] == [True, True, True, False, False]
    nearly = partly_filled(replay, 12)
    assert [changes_the_behaviour(nearly, row) for row in (0, 11, 12)] == [True, True, False]


def test_a_heavy_kl_holds_the_behaviour_at_the_target():
    state, replay = setup(DISCRETE)
    many = ONE.replace(epochs=16, minibatches=1)
    free, metrics = update(many.replace(kl_weight=0.0), state, replay, NOT_DUE)
    held, less = update(many.replace(kl_weight=1e3), state, replay, NOT_DUE)
    assert less["behaviour/kl"] < 0.5 * metrics["behaviour/kl"]
    assert differ(free.behaviour, held.behaviour)


def test_a_heavier_kl_holds_it_ever_closer_and_no_kl_at_all_leaves_one_step():
    """lambda -> inf, delta -> 0: all that stays is a step or two of Adam's size."""
    state, replay = setup(CONTINUOUS)
    state = state.replace(optimizer=start(props, ONE, CONTINUOUS, KEY).optimizer)
    many = ONE.replace(epochs=30, learning_rate=1e-3, max_gradient_norm=np.inf)

    def distance(config):
        out, metrics = update(config, state, replay, NOT_DUE)
        moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), out.behaviour, out.target.parameters["policy"])
        return max(jax.tree.leaves(moved)), float(metrics["behaviour/steps"])

    free, held = distance(many.replace(kl_weight=0.0)), distance(many.replace(kl_weight=1e4))
    assert held[0] < 0.2 * free[0]
    stopped = distance(many.replace(kl_weight=0.0, target_kl=0.0))
    assert stopped[1] == 1.0 and stopped[0] <= 1.001e-3


def test_a_table_s_states_learn_apart():
    """Other actions in one state change the behaviour there and nowhere else."""
    spec = EnvironmentSpec("test/Table-v0", ArraySpec((), np.dtype(np.int32), 3), DISCRETE.action, 20)
    config = ONE.replace(target=TARGET.replace(hidden_sizes=()), epochs=4)
    state = start(props, config, spec, jax.random.key(0))
    rng = np.random.default_rng(0)
    rows = (16, 2)
    zeros = np.zeros(rows, np.float32)
    observation, action = (rng.integers(n, size=rows).astype(np.int32) for n in (3, 4))
    ends = np.zeros(rows, bool)
    first = Transition(observation, action, zeros, observation, ends, ends, {"log_prob": zeros})
    second = first.replace(action=np.where(observation == 1, (action + 1) % 4, action))
    out = []
    for data in (first, second):
        replay = ring.add(ring.init(32, jax.tree.map(lambda x: x[0, 0], data), 2), data)
        out.append(update(config, state, replay, NOT_DUE)[0].behaviour["params"]["Dense_0"])
    assert list(out[0]) == ["kernel"]
    changed = np.any(out[0]["kernel"] != out[1]["kernel"], axis=1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("direction", ["behaviour_target", "target_behaviour"])
def test_the_direction_of_the_kl(direction):
    """Of one second step, the reported KL is the named one of behaviour and target."""
    state, replay = setup(CONTINUOUS)
    config = ONE.replace(kl_direction=direction, epochs=1)
    one, _ = update(config, state, replay, NOT_DUE)
    _, metrics = update(config.replace(epochs=2), state, replay, NOT_DUE)  # means over both steps; 0 at the first
    data = jax.tree.map(lambda x: x[4:].reshape(-1, *x.shape[2:]), replay.storage)
    network = state.target.policy_network
    behaviour = network.apply(one.behaviour, data.observation)
    target = network.apply(state.target.parameters["policy"], data.observation)
    kl = behaviour.kl(target) if direction == "behaviour_target" else target.kl(behaviour)
    other = target.kl(behaviour) if direction == "behaviour_target" else behaviour.kl(target)
    np.testing.assert_allclose(2.0 * metrics["behaviour/kl"], kl.mean(), rtol=1e-3)
    assert abs(float(kl.mean() - other.mean())) > 3e-3 * float(kl.mean())


def test_the_behaviour_stops_at_its_target_kl():
    state, replay = setup(DISCRETE)
    many = ONE.replace(epochs=8, minibatches=2, learning_rate=5e-2)
    _, metrics = update(many, state, replay, NOT_DUE)
    assert metrics["behaviour/steps"] == 16.0
    _, fewer = update(many.replace(target_kl=1e-3), state, replay, NOT_DUE)
    assert 1.0 <= fewer["behaviour/steps"] < 16.0
    none, _ = update(many.replace(target_kl=-1.0), state, replay, NOT_DUE)
    assert_same(none.behaviour, state.target.parameters["policy"])


@SPECS
def test_actions_are_the_behaviour_s_with_their_density(spec):
    state, _ = setup(spec)
    behaviour = jax.tree.map(lambda x: x + 0.3, state.behaviour)
    state = state.replace(behaviour=behaviour)
    observation = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    action, extras = props.act(ONE, state, observation, np.int32(0), KEY)
    distribution = state.target.policy_network.apply(behaviour, observation)
    expected, _ = ppo.behave(distribution, KEY)
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_allclose(
        extras["log_prob"], distribution.log_prob(extras.get("sample", action)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(props.policy(ONE, state, observation), ppo.policy(TARGET, state.target, observation))


@pytest.mark.parametrize("m", [3, 16])
def test_lengths_that_do_not_fit_are_refused(m):
    with pytest.raises(UserError, match=r"config\.rollout_length") as error:
        props.init(
            ONE.replace(rollout_length=m, target=TARGET.replace(rollout_length=16, buffer_batches=1)), DISCRETE, KEY
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("discrete", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_learns_which_action_fits_the_observation(discrete):
    environment = probes.ObservationAction(discrete=discrete)
    environments.register("probe/fits", lambda num_envs: environment)
    target = ppo.Config(hidden_sizes=(32,), rollout_length=64, minibatches=4, learning_rate=3e-3, buffer_batches=2)
    config = props.Config(target=target, rollout_length=32, epochs=4, minibatches=4)
    settings = Settings("probe/fits", steps=20_480, seeds=2, num_envs=4, eval_every=20_480, progress=False)
    result = train(props, settings, config)
    np.testing.assert_allclose(list(result.summary["final_return"].values()), 1.0)


def test_a_run_on_a_host_environment():
    config = props.Config(target=TARGET.replace(rollout_length=64), rollout_length=32, epochs=2, minibatches=2)
    settings = Settings("InvertedPendulum-v5", 256, 2, eval_every=128, eval_episodes=1, progress=False)
    result = train(props, settings, config)
    assert np.all(np.isfinite(result.table["return"])) and differ(
        result.states.behaviour, result.states.target.parameters["policy"]
    )
