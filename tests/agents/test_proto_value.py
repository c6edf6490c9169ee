"""Proto-value networks as an agent: what each phase moves, and what it leaves as it was."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn, proto_value
from offpolicy_jax import cumulants, torsos
from offpolicy_jax.environments import make
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import proto_value as pv
from offpolicy_jax.training import Settings, train
from offpolicy_jax.training.agent import resolve
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec
from tests.agents.probing import assert_same, differ, random_experience
from tests.test_torsos import IMPALA

PIXELS = make("gridworld/FourRoomsPixels-v0")
SMALL = {"num_tasks": 10, "tasks_per_network": 5, "batch_size": 16, "learning_starts": 20, "threshold_steps": 30}
SMALL |= {"pretrain_steps": 100, "lspi_transitions": 64, "activation_rate": 0.1}
INNER = dqn.Config(hidden_sizes=(16,), n_step=3, batch_size=8, learning_starts=10, target_period=4)


@functools.cache
def experience():
    return random_experience(PIXELS, rows=4_096, num_envs=1)


def begun(**changes):
    config = proto_value.Config(**({"dqn": INNER} | SMALL | changes))
    return config, jax.jit(lambda key: proto_value.init(config, PIXELS.spec, key))(jax.random.key(0))


def updated(config, state, step):
    update = jax.jit(proto_value.update)
    return update(config, state, experience(), np.int32(step), jax.random.key(step))


def test_only_thresholds_move_at_first():
    config, state = begun()
    new, _ = updated(config, state, 49)
    assert_same(new.params, state.params)
    assert differ(new.thresholds, state.thresholds)
    later, _ = updated(config, new, 52)
    assert differ(later.params, new.params)
    assert_same(later.control, state.control)


def test_the_target_follows_the_parameters_one_step_late():
    config, state = begun(tau=0.25, gradient_steps=1)
    for step in (60, 61):
        new, _ = updated(config, state, step)
        expected = jax.tree.map(lambda target, online: 0.75 * target + 0.25 * online, state.target, state.params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new.target, expected)
        state = new
    assert differ(state.target, state.params)  # at init they are equal, so that the second step tells


@pytest.mark.parametrize("frozen", [False, True])
def test_thresholds_stop_only_if_asked(frozen):
    config, state = begun(freeze_thresholds=frozen)
    new, _ = updated(config, state, 60)
    assert differ(new.thresholds, state.thresholds) is not frozen


@pytest.mark.parametrize("control", ["dqn", "lspi"])
def test_control_leaves_the_features_bit_for_bit(control):
    config, state = begun(control=control)
    waiting, _ = updated(config, state, 105)
    assert_same(waiting, state)  # dqn.learning_starts counts from the second phase's beginning
    new, _ = updated(config, state, 10_000)  # a multiple of lspi_period later
    new = new if control == "dqn" else updated(config, state, 5_100)[0]
    assert_same((new.params, new.target, new.thresholds), (state.params, state.target, state.thresholds))
    assert differ(new.control.params, state.control.params)


@pytest.mark.parametrize(("starts", "first"), [(0, 101), (10, 110), (300, 400)])
def test_least_squares_solves_as_soon_as_control_starts(starts, first):
    config, state = begun(control="lspi", tasks="none", dqn=INNER.replace(learning_starts=starts))
    replay = experience()
    rewards = jax.random.normal(jax.random.key(0), replay.storage.reward.shape)
    replay = replay.replace(storage=replay.storage.replace(reward=rewards))
    run = functools.partial(jax.jit(proto_value.update), config)
    before, _ = run(state, replay, np.int32(first - 1), jax.random.key(0))
    assert_same(before.control, state.control)
    solved, metrics = run(state, replay, np.int32(first), jax.random.key(0))
    assert differ(solved.control.params, state.control.params) and metrics["critic/loss"] > 0.0
    later, kept = run(solved, replay, np.int32(first + 1), jax.random.key(1))
    assert_same(later.control, solved.control)
    assert kept["critic/loss"] == metrics["critic/loss"]


def test_seeds_solve_least_squares_apart():
    """As lanes of one program they find what each finds alone."""
    config = begun(control="lspi", tasks="none")[0]
    init = lambda key: proto_value.init(config, PIXELS.spec, key)  # noqa: E731
    states = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(0), 2))
    replay = experience()
    rewards = jax.random.normal(jax.random.key(0), replay.storage.reward.shape)
    replay = replay.replace(storage=replay.storage.replace(reward=rewards))
    keys, step = jax.random.split(jax.random.key(1), 2), np.int32(110)
    together, _ = jax.jit(jax.vmap(functools.partial(proto_value.update, config), (0, None, None, 0)))(
        states, replay, step, keys
    )
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], states)
        alone, _ = jax.jit(functools.partial(proto_value.update, config))(one, replay, step, keys[i])
        for name, x in alone.control.params["params"].items():
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3),
                x,
                jax.tree.map(lambda y, i=i: y[i], together.control.params["params"][name]),
            )


def test_warm_up_leaves_the_optimiser_as_it_was():
    config, state = begun()
    new, _ = updated(config, state, 49)
    assert_same(new.optimizer, state.optimizer)


def test_both_networks_are_the_same_function():
    """Fine-tuning copies the torso of one into the other."""
    config, state = begun(fine_tune=True, dqn=INNER.replace(activation="tanh"))
    pretrained, _ = updated(config, state, 60)
    observation = experience().storage.observation[:5, 0]
    seen = proto_value.features(config, pretrained, observation)
    np.testing.assert_array_equal(seen, torsos.features(pretrained.network, pretrained.params, observation))
    assert np.min(seen) < 0.0


def test_rectified_indicators_are_an_option():
    _, state = begun()
    observation = experience().storage.observation[:64, 0]
    configs = {relu: begun()[0].replace(relu_indicators=relu) for relu in (False, True)}
    outputs = {relu: np.asarray(proto_value.evaluate_tasks(c, state, observation)[0]) for relu, c in configs.items()}
    np.testing.assert_array_equal(outputs[True], np.maximum(outputs[False], 0.0))
    assert np.min(outputs[False]) < 0.0


def test_half_of_the_run_pre_trains_unless_said_otherwise():
    assert resolve(proto_value.Config(), PIXELS.spec, 6_000).pretrain_steps == 3_000
    assert resolve(proto_value.Config(pretrain_steps=70), PIXELS.spec, 6_000).pretrain_steps == 70
    for changes in ({"pretrain_steps": 50}, {"pretrain_steps": 57, "rollout_length": 8}):  # no update before control
        config, state = begun(**changes)
        with pytest.raises(UserError, match="more --steps") as error:
            updated(config, state, 64)
        assert "\n" not in str(error.value)


def test_a_run_without_control_is_refused():
    config = proto_value.Config(dqn=INNER, **SMALL)
    for steps in (60, 100):
        with pytest.raises(UserError, match="end within pre-training, 100 steps: ask for more --steps"):
            train(proto_value, Settings(PIXELS.spec.id, steps, 1, eval_every=steps, progress=False), config)


@pytest.mark.parametrize(("rate", "share"), [(0.9, 1 / 2), (0.25, 1 / 4)])
def test_hashed_sets_have_two_bins_at_least(rate, share):
    coefficients = pv.hash_coefficients(jax.random.key(0), 400, 100)
    observations = np.random.default_rng(0).integers(0, 256, (50, 10, 10, 1), dtype=np.uint8)
    _, r = cumulants.evaluate("hash", None, coefficients, jnp.zeros(400), observations, rate)
    np.testing.assert_allclose(np.mean(r), share, atol=0.02)


def test_a_run_that_is_resumed_with_more_steps_keeps_its_phases(tmp_path):
    run = Settings(PIXELS.spec.id, 40, 1, eval_every=40, eval_episodes=1, run_dir=str(tmp_path), progress=False)
    config = proto_value.Config(dqn=INNER, **{k: v for k, v in SMALL.items() if k != "pretrain_steps"})
    config = config.replace(learning_starts=8, threshold_steps=4)
    train(proto_value, run, config)
    train(proto_value, run.__class__(**vars(run) | {"steps": 80, "resume": True}), config)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["config"]["pretrain_steps"] == -1 and document["resolved_config"]["pretrain_steps"] == 20


def test_fine_tuning_begins_with_the_features_and_moves_them():
    config, state = begun(fine_tune=True)
    pretrained, _ = updated(config, state, 60)
    torso = pretrained.params["params"]["torso"]
    for params in (pretrained.control.params, pretrained.control.target):
        assert_same(params["params"]["torso"], torso)
    new, _ = updated(config, pretrained, 150)
    assert differ(new.control.params["params"]["torso"], torso)
    assert_same(new.params, pretrained.params)


@pytest.mark.parametrize("tasks", ["indicator", "hash", "cumulant", "behaviour", "none"])
def test_every_kind_of_task_learns_or_leaves_random_features(tasks):
    config, state = begun(tasks=tasks)
    new, metrics = updated(config, state, 60)
    assert differ(new.params, state.params) is (tasks != "none")
    assert all(np.isfinite(x) for x in metrics.values())
    assert differ(new.thresholds, state.thresholds) is (tasks == "indicator")


def test_thresholds_reach_the_rate_and_dead_tasks_are_counted():
    replay = experience()

    @jax.jit
    def run(config, state):
        def one(i, state):
            return proto_value.update(config, state, replay, jnp.int32(45), jax.random.key(i))[0]

        return jax.lax.fori_loop(0, 400, one, state)

    config, state = begun(batch_size=256)
    for rate in (8e-3, 1e-3):  # faster than the default, then at it: fewer steps
        state = run(config.replace(threshold_learning_rate=rate), state)
    observations = replay.storage.observation[:, 0]
    _, r = proto_value.evaluate_tasks(config, state, observations)
    # Data of few distinct states: a threshold cannot be nearer to the quantile than the share of one of them.
    _, counts = np.unique(np.asarray(observations).reshape(4_096, -1), axis=0, return_counts=True)
    np.testing.assert_allclose(np.mean(r, axis=0), 0.1, atol=counts.max() / 4_096 + 0.02)
    assert counts.max() / 4_096 < 0.05
    _, metrics = updated(config, state, 45)
    assert metrics["tasks/dead"] == 0 and metrics["tasks/always_on"] == 0
    zero = state.replace(activation=jnp.zeros(10).at[0].set(1.0))
    _, metrics = updated(config, zero, 45)
    assert metrics["tasks/always_on"] == 1 and metrics["tasks/dead"] > 0


def test_random_actions_first_and_greedy_ones_later():
    config, state = begun()
    observation = jnp.repeat(experience().storage.observation[:1, 0], 400, axis=0)
    act = jax.jit(proto_value.act)
    first = np.asarray(act(config, state, observation, np.int32(99), jax.random.key(0))[0])
    assert np.all(np.bincount(first, minlength=4) > 60)
    later = np.asarray(act(config, state, observation, np.int32(10**6), jax.random.key(0))[0])
    greedy = np.asarray(proto_value.policy(config, state, observation))
    np.testing.assert_allclose(np.mean(later != greedy), 0.75 * 0.05, atol=0.04)


def test_what_cannot_work_is_refused():
    vector = EnvironmentSpec("test/Vector-v0", ArraySpec((3,), np.dtype(np.float32)), PIXELS.spec.action)
    continuous = EnvironmentSpec("test/C-v0", vector.observation, ArraySpec((2,), np.dtype(np.float32)))
    for spec, changes, text in (
        (continuous, {}, "discrete"),
        (vector, {"tasks": "hash"}, "integers"),
        (vector, {"dqn": INNER.replace(hidden_sizes=())}, "hidden_sizes"),
        (vector, {"num_tasks": 7, "tasks_per_network": 5}, "multiple"),
        (vector, {"control": "lspi", "fine_tune": True}, "fine_tune"),
    ):
        with pytest.raises(UserError, match=text) as error:
            proto_value.init(proto_value.Config(**({"dqn": INNER} | SMALL | changes)), spec, jax.random.key(0))
        assert "\n" not in str(error.value)


def test_the_papers_preset_fits_together():
    """133 million parameters: shapes only."""
    frames = ArraySpec((84, 84, 4), np.dtype(np.uint8), frames=4)
    spec = EnvironmentSpec("ALE/Pong-v5", frames, ArraySpec((), np.dtype(np.int32), num_values=6), 27_000)
    config = proto_value.PRESETS["paper"]
    assert config.dqn.activation == "relu" and proto_value.Config().dqn.activation == "gelu"
    state = jax.eval_shape(lambda key: proto_value.init(config, spec, key), jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(state.params))
    assert size == IMPALA + 4097 * 100 * 6
    action = jax.eval_shape(lambda s, o: proto_value.policy(config, s, o), state, jnp.zeros((2, 84, 84, 4), jnp.uint8))
    assert action.shape == (2,)
