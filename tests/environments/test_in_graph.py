"""In-graph environments against Gymnasium's own stepping, the dispatch of `make`, and the probes."""

import subprocess
import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.experimental.functional import FuncEnv

from offpolicy_jax import environments
from offpolicy_jax.environments import in_graph
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec
from tests import probes

IDS = [
    "phys2d/CartPole-v0",
    "phys2d/CartPole-v1",
    "phys2d/Pendulum-v0",
    "tabular/CliffWalking-v0",
    "tabular/Blackjack-v0",
]

pytestmark = pytest.mark.filterwarnings("ignore:.*is out of date", "ignore:.*Explicitly requested dtype")


def random_actions(spec, key, shape):
    if spec.discrete:
        return jax.random.randint(key, shape, 0, spec.num_actions)
    return jax.random.uniform(key, (*shape, *spec.action.shape), minval=-1.0, maxval=1.0)


def rollout(environment, key, actions):
    """Returns (state at the end, first observation, Steps with leading axis T) of one environment."""

    def run(key, actions):
        state, first = environment.reset(key)
        state, steps = jax.lax.scan(environment.step, state, actions)
        return state, first, steps

    return jax.jit(run)(key, actions)


def gymnasium_action(id, action):
    if id == "phys2d/Pendulum-v0":
        return 2.0 * action  # its torque is in [-2, 2]
    return action.reshape(1) if id == "tabular/CliffWalking-v0" else action


@pytest.mark.parametrize(("id", "num_steps"), [(id, 230 if "phys2d" in id else 40) for id in IDS[1:]])
def test_steps_as_gymnasium_over_several_episodes(id, num_steps):
    environment = in_graph.make_in_graph(id)
    actions = random_actions(environment.spec, jax.random.key(7), (num_steps,))
    _, first, steps = rollout(environment, jax.random.key(3), actions)

    reference = gymnasium.make(id)
    observation, _ = reference.reset(seed=3)
    np.testing.assert_allclose(first, observation, atol=1e-6)
    for t in range(num_steps):
        observation, reward, terminated, truncated, _ = reference.step(gymnasium_action(id, actions[t]))
        # Fused arithmetic rounds differently, and a swinging pendulum amplifies it.
        np.testing.assert_allclose(steps.next_observation[t], observation, atol=2e-3, err_msg=f"step {t}")
        np.testing.assert_allclose(steps.reward[t], float(reward), atol=2e-3)
        assert steps.terminated[t] == terminated
        assert steps.truncated[t] == truncated
        if terminated or truncated:
            observation, _ = reference.reset()
        np.testing.assert_allclose(steps.observation[t], observation, atol=2e-3)
    if id != "tabular/CliffWalking-v0":
        assert np.any(steps.terminated | steps.truncated)


def test_pendulum_is_truncated_at_200_and_never_terminated():
    environment = in_graph.make_in_graph("phys2d/Pendulum-v0")
    assert environment.spec.max_episode_steps == 200
    state, _, steps = rollout(environment, jax.random.key(0), jnp.ones((450, 1)))
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [199, 399])
    assert not steps.terminated.any()
    assert state.elapsed == 50

    at_end, going_on = steps.truncated, ~steps.truncated
    assert np.all(np.abs(steps.observation - steps.next_observation)[at_end].max(-1) > 1e-3)
    np.testing.assert_array_equal(steps.observation[going_on], steps.next_observation[going_on])
    # The true successor goes on from the last angle; the first observation of an episode is slower than 1 rad/s.
    assert np.all(np.abs(steps.observation[at_end][:, 2]) <= 1.0)
    assert np.all(np.abs(steps.next_observation[at_end][:, 2] - steps.next_observation[198:399:200][:, 2]) < 1.5)


def test_cartpole_terminates_by_falling():
    environment = in_graph.make_in_graph("phys2d/CartPole-v1")
    assert environment.spec.max_episode_steps == 500
    _, _, steps = rollout(environment, jax.random.key(0), jnp.ones((50,), jnp.int32))
    assert steps.terminated.sum() >= 3
    assert not steps.truncated.any()
    fallen = np.abs(steps.next_observation[:, 2]) > 12 * 2 * np.pi / 360
    np.testing.assert_array_equal(fallen, steps.terminated)
    assert np.all(np.abs(steps.observation[steps.terminated]) <= 0.05)


def test_ending_at_the_time_limit_by_itself_is_not_truncated():
    environment = in_graph.adapt("cartpole", in_graph.make_in_graph("phys2d/CartPole-v1").func_env)
    _, _, steps = rollout(environment, jax.random.key(0), jnp.ones((20,), jnp.int32))
    length = int(np.flatnonzero(steps.terminated)[0]) + 1
    limited = in_graph.adapt("cartpole", environment.func_env, max_episode_steps=length)
    _, _, steps = rollout(limited, jax.random.key(0), jnp.ones((length,), jnp.int32))
    assert steps.terminated[-1] and not steps.truncated.any()
    limited = in_graph.adapt("cartpole", environment.func_env, max_episode_steps=length - 1)
    _, _, steps = rollout(limited, jax.random.key(0), jnp.ones((length - 1,), jnp.int32))
    assert steps.truncated[-1] and not steps.terminated.any()


TORQUE_AND_SPEED = spaces.Box(np.asarray([-2, 0], np.float32), np.asarray([2, 10], np.float32))


class Recorder(FuncEnv):
    """The state and the observation are the action that the environment was given."""

    def __init__(self, action_space, observation_space=None):
        super().__init__()
        self.action_space = action_space
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, action_space.shape, np.float32)

    def initial(self, rng, params=None):
        return jnp.zeros(self.action_space.shape)

    def transition(self, state, action, rng, params=None):
        return action

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return 0

    def terminal(self, state, rng, params=None):
        return False


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (TORQUE_AND_SPEED, [1.0, -1.0], [2.0, 0.0]),
        (TORQUE_AND_SPEED, [-0.5, 0.0], [-1.0, 5.0]),
        (TORQUE_AND_SPEED, [-3.0, 1.5], [-2.0, 10.0]),  # outside: clipped
        (spaces.Discrete(3, start=4), 2, 6),
        (spaces.Box(5, 8, (1,), np.int32), 3, [8]),
    ],
)
def test_actions_reach_the_space_of_the_environment(space, action, expected):
    environment = in_graph.adapt("recorder", Recorder(space))
    state, _ = environment.reset(jax.random.key(0))
    _, step = environment.step(state, jnp.asarray(action))
    np.testing.assert_array_equal(step.next_observation, np.asarray(expected, np.float32))
    assert environment.spec.discrete == (space.shape != (2,))


@pytest.mark.parametrize("id", IDS)
def test_runs_vmapped_and_scanned_with_constant_structure(id):
    environment = in_graph.make_in_graph(id)
    state, observation = jax.eval_shape(environment.reset, jax.random.key(0))
    action = jnp.zeros(environment.spec.action.shape, environment.spec.action.dtype)
    next_state, step = jax.eval_shape(environment.step, state, action)
    assert jax.tree.structure(next_state) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(next_state), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (after.shape, after.dtype, False)
    expected = environment.spec.observation
    for seen in (observation, step.observation, step.next_observation):
        assert (seen.shape, seen.dtype) == (expected.shape, expected.dtype)
    assert [x.dtype for x in step[2:]] == [np.float32, bool, bool]
    assert all(x.shape == () for x in step[2:])

    @jax.jit
    def run(key):
        actions = random_actions(environment.spec, key, (4, 300))
        states, _ = jax.vmap(environment.reset)(jax.random.split(key, 4))
        return jax.vmap(lambda state, actions: jax.lax.scan(environment.step, state, actions))(states, actions)

    states, steps = run(jax.random.key(0))
    for leaf in jax.tree.leaves(steps):
        assert leaf.shape[:2] == (4, 300)
        assert np.isfinite(leaf).all()
    assert not (steps.terminated & steps.truncated).any()
    if expected.num_values is not None:
        assert steps.next_observation.min() >= 0
        assert steps.next_observation.max() < expected.num_values
    # The same key gives the same numbers, another key gives others.
    jax.tree.map(np.testing.assert_array_equal, steps, run(jax.random.key(0))[1])
    assert not np.array_equal(steps.next_observation, run(jax.random.key(1))[1].next_observation)
    assert not np.array_equal(steps.next_observation[0], steps.next_observation[1])
    assert len({tuple(row) for row in np.asarray(jax.random.key_data(states.key))}) == 4


def test_vmapped_environment_is_the_single_one_with_that_key():
    environment = in_graph.make_in_graph("phys2d/CartPole-v1")
    keys = jax.random.split(jax.random.key(5), 3)
    actions = random_actions(environment.spec, jax.random.key(6), (3, 50))

    def run(key, actions):
        return jax.lax.scan(environment.step, environment.reset(key)[0], actions)[1]

    single, together = jax.jit(run), jax.jit(jax.vmap(run))(keys, actions)
    for i in range(3):
        alone = single(keys[i], actions[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), together, alone)


def test_specs():
    int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
    spec = in_graph.make_in_graph("tabular/CliffWalking-v0").spec
    assert spec.observation == ArraySpec((1,), int32, num_values=48)
    assert spec.action == ArraySpec((), int32, num_values=4)
    assert spec.max_episode_steps is None
    spec = in_graph.make_in_graph("tabular/Blackjack-v0").spec
    assert spec.observation == ArraySpec((3,), int32, num_values=33)
    spec = in_graph.make_in_graph("phys2d/Pendulum-v0").spec
    assert spec.observation == ArraySpec((3,), float32)
    assert spec.action == ArraySpec((1,), float32)
    assert not spec.discrete


def test_cliff_walking_reaches_the_goal_and_falls():
    environment = in_graph.make_in_graph("tabular/CliffWalking-v0")
    _, first, steps = rollout(environment, jax.random.key(0), jnp.asarray([1, 0] + [1] * 11 + [2], jnp.int32))
    assert first == 36
    assert steps.reward[0] == -100 and steps.next_observation[0] == 36 and not steps.terminated[0]
    assert np.all(np.asarray(steps.reward)[1:] == -1)
    np.testing.assert_array_equal(np.flatnonzero(steps.terminated), [13])
    assert steps.next_observation[-1] == 47 and steps.observation[-1] == 36


def test_observations_may_be_nested_and_keep_bytes():
    nested = spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (4, 4, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(5), spaces.Discrete(2))),
        }
    )

    class Nested(Recorder):
        def observation(self, state, rng, params=None):
            return {"pixels": jnp.full((4, 4, 3), 7, jnp.uint8), "pair": (state[0] * 0 + 3, jnp.asarray(True))}

    environment = in_graph.adapt("nested", Nested(spaces.Box(-1, 1, (2,)), nested))
    state, observation = environment.reset(jax.random.key(0))
    _, step = environment.step(state, jnp.zeros((2,)))
    for seen in (observation, step.observation, step.next_observation):
        assert jax.tree.map(lambda x: x.dtype.name, seen) == {"pixels": "uint8", "pair": ("int32", "int32")}
        assert int(seen["pair"][0]) == 3
    assert environment.spec.observation["pair"][0].num_values == 5
    assert environment.spec.observation["pixels"].num_values is None


@pytest.mark.parametrize(
    "space",
    [spaces.MultiBinary(2), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0, 3, (2,), np.int32), spaces.Dict()],
)
def test_unsupported_actions_are_a_one_line_error(space):
    with pytest.raises(UserError, match=r"actions in .* are not supported") as error:
        in_graph.adapt("recorder", Recorder(space, spaces.Discrete(2)))
    assert "\n" not in str(error.value)


def test_unsupported_observations_are_a_one_line_error():
    with pytest.raises(UserError, match=r"observations in .* are not supported"):
        in_graph.adapt("recorder", Recorder(spaces.Discrete(2), spaces.Text(3)))


def test_make_dispatches_and_registers(monkeypatch):
    monkeypatch.setattr(environments, "_constructors", {})
    environment = environments.make("phys2d/Pendulum-v0", 8)
    assert environments.is_in_graph(environment)
    assert environment.spec.id == "phys2d/Pendulum-v0"
    with pytest.raises(UserError, match="num_envs"):
        environments.make("phys2d/Pendulum-v0", 0)

    environments.register("probe/OneStep", lambda num_envs: probes.HostProbe(probes.OneStep(), num_envs))
    registered = environments.make("probe/OneStep", 3)
    assert isinstance(registered, probes.HostProbe) and registered.num_envs == 3
    assert not environments.is_in_graph(registered)
    assert {"probe/OneStep", *IDS} <= set(environments.known_ids())


@pytest.mark.parametrize(
    ("id", "nearest"),
    [("phys2d/cartpole-v1", "phys2d/CartPole-v1"), ("dm_control/cheetah-runn-v0", "dm_control/cheetah-run-v0")],
)
def test_unknown_id_names_the_nearest(id, nearest):
    if id.startswith("dm_control/"):
        pytest.importorskip("dm_control")
    with pytest.raises(UserError, match=nearest) as error:
        environments.make(id, 1)
    assert "\n" not in str(error.value)
    assert str(error.value).count(" or ") <= 2


def test_mujoco_is_loaded_only_where_it_is_needed():
    code = (
        "import sys, offpolicy_jax.environments as e; assert 'gymnasium' not in sys.modules;"
        "e.make('phys2d/Pendulum-v0', 1); e.make('CartPole-v1', 1); assert 'mujoco' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("probe", probes.PROBES)
def test_probe_has_its_declared_shapes(probe, discrete):
    environment = probe(discrete=discrete)
    assert environment.spec.discrete == discrete
    actions = random_actions(environment.spec, jax.random.key(0), (40,)).astype(environment.spec.action.dtype)
    _, first, steps = rollout(environment, jax.random.key(1), actions)
    assert first.shape == (1,) and steps.next_observation.shape == (40, 1)
    assert [x.dtype for x in steps] == [np.float32, np.float32, np.float32, bool, bool]
    done = steps.terminated | steps.truncated
    assert done.any()
    starts = {0.0} if probe not in (probes.ObservationReward, probes.ObservationAction) else {-1.0, 1.0}
    assert set(np.asarray(steps.observation[done]).ravel().tolist()) == starts
    if not steps.truncated.any():
        assert starts.isdisjoint(np.asarray(steps.next_observation[done]).ravel().tolist())


def test_probe_rewards():
    _, _, steps = rollout(probes.ConstantReward(), jax.random.key(0), jnp.zeros((25, 1)))
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [9, 19])
    assert not steps.terminated.any() and np.all(steps.reward == 1)
    _, _, steps = rollout(probes.DelayedReward(), jax.random.key(0), jnp.zeros((4, 1)))
    np.testing.assert_array_equal(steps.reward, [0, 1, 0, 1])
    np.testing.assert_array_equal(steps.terminated, [False, True, False, True])
    np.testing.assert_array_equal(steps.next_observation[:, 0], [1, 2, 1, 2])
    np.testing.assert_array_equal(steps.observation[:, 0], [1, 0, 1, 0])
    _, _, steps = rollout(probes.ActionReward(), jax.random.key(0), jnp.asarray([[0.5], [-0.5]]))
    np.testing.assert_array_equal(steps.reward, [0, -1])
    _, _, steps = rollout(probes.ActionReward(discrete=True), jax.random.key(0), jnp.asarray([0, 1]))
    np.testing.assert_array_equal(steps.reward, [0, 1])
    for discrete, positive in [(False, jnp.full((20, 1), 0.3)), (True, jnp.ones((20,), jnp.int32))]:
        for probe in (probes.ObservationReward, probes.ObservationAction):
            _, first, steps = rollout(probe(discrete=discrete), jax.random.key(0), positive)
            acted_on = jnp.concatenate([first[None], steps.observation[:-1]])[:, 0]
            np.testing.assert_array_equal(steps.reward, acted_on)  # a positive action fits exactly observation 1


@pytest.mark.parametrize("environment", [probes.ObservationAction(discrete=True), probes.ConstantReward(limit=3)])
def test_host_probe_is_the_in_graph_probe(environment):
    seeds = np.asarray([3, 2**40 + 1, 5])
    host = probes.HostProbe(environment, 3)
    actions = np.asarray(random_actions(environment.spec, jax.random.key(0), (12, 3)))
    first = host.reset(seeds)
    assert isinstance(first, np.ndarray)
    steps = [host.step(action) for action in actions[:7]]
    saved = host.get_state()
    steps += [host.step(action) for action in actions[7:]]
    for i, seed in enumerate(seeds):
        _, observation, alone = rollout(environment, jax.random.key(int(seed)), actions[:, i])
        np.testing.assert_array_equal(first[i], observation)
        jax.tree.map(lambda a, *b, i=i: np.testing.assert_array_equal(a, [x[i] for x in b]), alone, *steps)

    resumed = probes.HostProbe(environment, 3)
    assert all(isinstance(x, np.ndarray) and x.dtype != object for x in saved.values())
    resumed.set_state(saved)
    for t in range(7, 12):
        jax.tree.map(np.testing.assert_array_equal, resumed.step(actions[t]), steps[t])
