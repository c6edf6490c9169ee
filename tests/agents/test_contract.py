"""What every agent in the registry promises to the training loops."""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap

import jax
import numpy as np
import pytest

import agents
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.training.agent import check, resolve
from offpolicy_jax.training.seeds import config_axes
from tests.agents.probing import assert_close, assert_same, differ, full_replay, spec_of, start, tiny

EACH = pytest.mark.parametrize("agent", [agents.load(name) for name in agents.REGISTRY], ids=list(agents.REGISTRY))
STEP = np.int32(1000)


@functools.cache
def begun(agent):
    """Config, spec, state and a full replay."""
    spec = spec_of(agent)
    config = resolve(tiny(agent, learning_rate=1e-2), spec, 20_000)  # as loops do
    state = start(agent, config, spec, jax.random.key(0))
    return config, spec, state, full_replay(agent, config, spec, state)


@functools.cache
def jitted_update(agent):
    return jax.jit(agent.update)


def test_an_unknown_agent_is_answered_with_the_nearest_names():
    with pytest.raises(UserError, match="sac_discrete") as error:
        agents.load("sac_discret")
    assert "\n" not in str(error.value)


@EACH
def test_it_has_the_functions_that_loops_call(agent):
    for name in ("Config", "State"):
        assert dataclasses.is_dataclass(getattr(agent, name))
        assert agent.__doc__ and getattr(agent, name).__doc__
    parameters = {
        "init": ["config", "spec", "key"],
        "act": ["config", "state", "observation", "step", "key"],
        "policy": ["config", "state", "observation"],
        "update": ["config", "state", "replay", "step", "key"],
    }
    for name, expected in parameters.items():
        function = getattr(agent, name)
        assert list(inspect.signature(function).parameters) == expected
        assert function.__doc__


@EACH
def test_every_field_of_its_config_is_documented(agent):
    """The string below a field is its --help."""
    body = ast.parse(textwrap.dedent(inspect.getsource(agent.Config))).body[0].body
    documented = {
        field.target.id
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
    assert {field.name for field in dataclasses.fields(agent.Config)} == documented


@EACH
def test_floats_of_its_config_are_leaves_and_all_else_is_static(agent):
    config = agent.Config()
    leaves = {tuple(part.name for part in path) for path, _ in jax.tree_util.tree_leaves_with_path(config)}

    def floats(config):
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        within = {(n, *path) for n, x in values.items() if dataclasses.is_dataclass(x) for path in floats(x)}
        return within | {(name,) for name, x in values.items() if isinstance(x, float)}

    assert leaves == floats(config)
    assert all(isinstance(leaf, float) for leaf in jax.tree.leaves(config))
    hash(jax.tree.structure(config))  # the static part keys the cache of compiled functions


@EACH
def test_another_float_does_not_compile_again(agent):
    config, _, state, replay = begun(agent)
    update, compiled = jitted_update(agent), []
    for learning_rate in (1e-3, 1e-2):
        update(config.replace(learning_rate=learning_rate), state, replay, STEP, jax.random.key(0))
        compiled.append(update._cache_size())
    assert compiled[0] == compiled[1]


@EACH
@pytest.mark.parametrize("num_envs", [1, 3])
def test_actions_have_the_shape_dtype_and_range_of_the_spec(agent, num_envs):
    config, spec, state, _ = begun(agent)
    act, policy = (jax.jit(functools.partial(f, config)) for f in (agent.act, agent.policy))
    for scale in (1.0, 1e3):
        observation = (scale * np.random.default_rng(0).normal(size=(num_envs, 3))).astype(np.float32)
        behaviour, extras = act(state, observation, STEP, jax.random.key(1))
        assert all(x.shape[0] == num_envs and np.all(np.isfinite(x)) for x in jax.tree.leaves(extras))
        for action in (behaviour, policy(state, observation)):
            assert action.shape == (num_envs, *spec.action.shape)
            assert action.dtype == spec.action.dtype
            low, high = (0, spec.num_actions - 1) if spec.discrete else (-1.0, 1.0)
            assert np.all((action >= low) & (action <= high))


@EACH
def test_greedy_actions_of_one_observation_do_not_depend_on_the_others(agent):
    config, _, state, _ = begun(agent)
    observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    policy = jax.jit(functools.partial(agent.policy, config))
    together, alone = policy(state, observation), [policy(state, x[None])[0] for x in observation]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


@EACH
def test_an_update_is_pure_and_changes_the_state(agent):
    config, _, state, replay = begun(agent)
    before = jax.tree.map(np.array, (state, replay))
    out = jitted_update(agent)(config, state, replay, STEP, jax.random.key(2))
    # Traced anew, under the same name, so that the compiled program comes from the cache.
    traced_anew = jax.jit(functools.wraps(agent.update)(lambda *args: agent.update(*args)))
    again = traced_anew(config, state, replay, STEP, jax.random.key(2))
    assert_same(out, again)
    assert_same(before, (state, replay))
    assert differ(out[0], state)
    assert jax.tree.structure(out[0]) == jax.tree.structure(state)
    same_types = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), out[0], state)
    assert all(jax.tree.leaves(same_types))  # a loop can carry it


@EACH
def test_metrics_are_finite_scalars_with_a_group_in_their_name(agent):
    config, _, state, replay = begun(agent)
    _, metrics = jitted_update(agent)(config, state, replay, STEP, jax.random.key(2))
    assert metrics
    for name, value in metrics.items():
        assert "/" in name
        assert value.shape == () and np.isfinite(value)


@EACH
def test_other_keys_give_other_parameters_actions_and_updates(agent):
    config, spec, state, replay = begun(agent)
    first, second = jax.random.key(1), jax.random.key(2)
    assert differ(*(start(agent, config, spec, key) for key in (first, second)))
    act = jax.jit(functools.partial(agent.act, config))
    observation = np.zeros((50, 3), np.float32)
    assert differ(*(act(state, observation, STEP, key)[0] for key in (first, second)))
    assert differ(*(jitted_update(agent)(config, state, replay, STEP, key)[0] for key in (first, second)))


@EACH
def test_seeds_with_hyper_parameters_of_their_own_are_runs_of_their_own(agent):
    """Every float of the config may have a seed axis; seed i is what it would be alone."""
    config, spec, _, replay = begun(agent)
    configs = jax.tree.map(lambda x: np.full(2, x, np.float32), config)
    configs = configs.replace(learning_rate=np.array([1e-3, 1e-2], np.float32))
    axes, keys = config_axes(configs), jax.random.split(jax.random.key(3), 2)
    assert jax.tree.leaves(axes) == [0] * len(jax.tree.leaves(config))

    def seed(tree, i):
        return jax.tree.map(lambda x: x[i], tree)

    two = [start(agent, config, spec, key) for key in keys]
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *two)
    initial = jax.eval_shape(jax.vmap(lambda c, k: agent.init(c, spec, k), in_axes=(axes, 0)), configs, keys)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), initial, states)))
    replays = replay.replace(storage=jax.tree.map(lambda x: np.stack([x, x]), replay.storage))
    update = jax.jit(jax.vmap(agent.update, in_axes=(axes, 0, ring.SEED_AXES, None, 0)))
    out = jax.tree.map(np.asarray, update(configs, states, replays, STEP, keys))
    for i in range(2):
        alone = jitted_update(agent)(jax.tree.map(float, seed(configs, i)), seed(states, i), replay, STEP, keys[i])
        assert_close(seed(out, i), alone)

    # From the same state with the same key, the two learning rates alone make the difference.
    first = jax.tree.map(lambda x: np.stack([x[0], x[0]]), states)
    out, _ = jax.tree.map(np.asarray, update(configs, first, replays, STEP, keys[np.array([0, 0])]))
    assert differ(seed(out, 0), seed(out, 1))


@EACH
def test_a_prediction_is_of_an_action_that_the_policy_samples(agent):
    """The value bias reads it: finite, one per environment, and no bonus at no temperature."""
    if not hasattr(agent, "predict"):
        assert agent.DEMONSTRATIONS  # its rewards are its own: there is nothing to hold values against
        return
    config, spec, state, _ = begun(agent)
    predict = jax.jit(agent.predict)
    observation = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    action, value, bonus = predict(config, state, observation, jax.random.key(0))
    assert action.shape == (4, *spec.action.shape) and action.dtype == spec.action.dtype
    assert value.shape == bonus.shape == (4,)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(bonus))
    if agent is agents.load("dqn"):  # whose policy is the greedy one
        return
    many = np.repeat(observation[:1], 200, axis=0)
    assert differ(
        predict(config, state, many, jax.random.key(0))[0], predict(config, state, many, jax.random.key(1))[0]
    )
    if hasattr(state, "log_alpha"):
        cold = state.replace(log_alpha=np.float32(-np.inf))
    elif hasattr(config, "entropy_weight"):
        cold, config = state, config.replace(entropy_weight=0.0)
    else:  # it never has a bonus
        cold = state
    np.testing.assert_array_equal(predict(config, cold, observation, jax.random.key(0))[2], 0.0)


@EACH
def test_presets_are_configs_that_a_run_accepts(agent):
    for config in getattr(agent, "PRESETS", {}).values():
        assert isinstance(config, agent.Config)
        check(config)


@EACH
def test_the_first_state_can_be_donated(agent):
    """Targets start as copies, in buffers of their own. Not under jit, which would give them those."""
    state = agent.init(tiny(agent), spec_of(agent), jax.random.key(0))
    for field in dataclasses.fields(state):
        if field.name.startswith("target_"):
            assert_same(getattr(state, field.name), getattr(state, field.name.removeprefix("target_")))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)
    expected = jax.tree.map(np.array, state)
    out = jax.jit(lambda state: jax.tree.map(lambda x: -x, state), donate_argnums=0)(state)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert_same(out, jax.tree.map(lambda x: -x, expected))
