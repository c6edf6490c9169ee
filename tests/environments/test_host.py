"""Host environments: agreement with Gymnasium and dm_control, endings, exact resume, spaces."""

import dataclasses
import io

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import WrapperSpec

from offpolicy_jax.environments import make, with_absorbing
from offpolicy_jax.environments.host import LoopedEnvironment, _repeated, known_host_ids, make_host
from offpolicy_jax.errors import UserError
from offpolicy_jax.transition import ArraySpec

EXACT = [
    "InvertedPendulum-v5",
    "HalfCheetah-v5",
    "Ant-v5",
    "Hopper-v5",
    "Pendulum-v1",
    "CartPole-v1",
    "FrozenLake-v1",
    "dm_control/cartpole-swingup-v0",
    "dm_control/reacher-easy-v0",  # rewrites its model at every episode
    "dm_control/ball_in_cup-catch-v0",  # contacts and a tendon
    "dm_control/finger-turn_easy-v0",  # touch sensors, a 0-d observation
]


def random_actions(host, rng):
    action = host.spec.action
    if host.spec.discrete:
        return rng.integers(0, action.num_values, host.num_envs, dtype=np.int32)
    return rng.uniform(-1, 1, (host.num_envs, *action.shape)).astype(np.float32)


def bits(tree):
    return [(leaf.dtype, leaf.shape, leaf.tobytes()) for leaf in jax.tree.leaves(tree)]


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return dict(loaded)


@pytest.mark.parametrize("id", EXACT)
def test_resume_is_bit_identical(id):
    rng = np.random.default_rng(0)
    undisturbed, saved = (make_host(id, 2, max_episode_steps=15) for _ in range(2))
    for host in (undisturbed, saved):
        host.reset(np.array([3, 4]))
    for _ in range(22):  # into the second episode or a later one
        actions = random_actions(saved, rng)
        undisturbed.step(actions)
        saved.step(actions)
    state = saved.get_state()
    assert all(array.dtype != object and array.size for array in state.values())

    fresh = make_host(id, 2, max_episode_steps=15)
    used = make_host(id, 2, max_episode_steps=15)
    used.reset(np.array([7, 8]))
    for _ in range(18):
        used.step(random_actions(used, rng))
    resumed = [fresh, used]
    for host in resumed:
        host.set_state(through_a_file(state))
        assert bits(host.observation) == bits(saved.observation)
        assert bits(host.get_state()) == bits(state)

    endings = np.zeros(2, int)
    for _ in range(40):
        actions = random_actions(saved, rng)
        expected = undisturbed.step(actions)
        endings += expected.terminated | expected.truncated
        for host in (saved, *resumed):  # `saved` shows that saving disturbs nothing
            assert bits(host.step(actions)) == bits(expected)
    assert endings.min() >= 2
    assert saved.exact_resume


def test_resume_refuses_another_environment():
    host = make_host("Pendulum-v1", 2)
    with pytest.raises(ValueError, match="reset"):
        host.get_state()
    host.reset(np.arange(2))
    with pytest.raises(UserError, match="2 x Pendulum-v1"):
        make_host("Pendulum-v1", 3).set_state(host.get_state())
    with pytest.raises(UserError, match="2 x CartPole-v1"):
        make_host("CartPole-v1", 2).set_state(host.get_state())


def test_resume_refuses_lost_precision():
    host = make_host("InvertedPendulum-v5", 1)
    host.reset(np.arange(1))
    state = host.get_state()
    state["physics"] = state["physics"].astype(np.float32)
    with pytest.raises(ValueError, match="float64"):
        host.set_state(state)


@pytest.mark.parametrize(
    "id", ["HalfCheetah-v5", "Ant-v5", "InvertedPendulum-v5", "CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"]
)
def test_agrees_with_gymnasium(id):
    """Same seeds and actions as `gymnasium.make(id)`: same observations, rewards, endings and later episodes."""
    host = make_host(id, 2, max_episode_steps=30)
    raw = [gymnasium.make(id, max_episode_steps=30) for _ in range(2)]
    if not host.spec.discrete:
        raw = [gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1)) for env in raw]
    seeds = np.array([11, 12])
    observation = host.reset(seeds)
    for i, env in enumerate(raw):
        np.testing.assert_array_equal(observation[i], env.reset(seed=int(seeds[i]))[0].astype(np.float32))
    rng = np.random.default_rng(1)
    for _ in range(70):
        actions = random_actions(host, rng)
        step = host.step(actions)
        for i, env in enumerate(raw):
            action = int(actions[i]) if host.spec.discrete else actions[i]
            successor, reward, terminated, truncated, _ = env.step(action)
            # RescaleAction rounds differently where the bounds are not [-1, 1].
            np.testing.assert_allclose(step.next_observation[i], successor, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(step.reward[i], float(reward), rtol=2e-4, atol=2e-5)
            assert step.terminated[i] == terminated
            assert step.truncated[i] == (truncated and not terminated)
            if terminated or truncated:
                np.testing.assert_array_equal(step.observation[i], env.reset()[0].astype(np.float32))
            else:
                np.testing.assert_array_equal(step.observation[i], step.next_observation[i])


@pytest.mark.parametrize("task", ["cartpole-swingup", "reacher-hard"])
def test_agrees_with_dm_control(task):
    from dm_control import suite

    host = make_host(f"dm_control/{task}-v0", 1)
    assert host.spec.max_episode_steps == 1000
    raw = suite.load(*task.split("-"), task_kwargs={"random": 5})
    observation, expected = host.reset(np.array([5])), raw.reset().observation
    rng = np.random.default_rng(1)
    for t in range(1050):
        for name, value in expected.items():
            np.testing.assert_array_equal(observation[name][0], value.astype(np.float32))
        actions = random_actions(host, rng)
        step, timestep = host.step(actions), raw.step(actions[0])
        assert step.reward[0] == np.float32(timestep.reward)
        assert not step.terminated[0]
        assert step.truncated[0] == timestep.last() == (t == 999)
        for name, value in timestep.observation.items():
            np.testing.assert_array_equal(step.next_observation[name][0], value.astype(np.float32))
        observation, expected = step.observation, (raw.reset() if timestep.last() else timestep).observation


def test_time_limit_truncates():
    host = make_host("HalfCheetah-v5", 1)
    assert host.spec.max_episode_steps == 1000
    host.reset(np.array([0]))
    actions = np.zeros((1, 6), np.float32)
    for t in range(1, 2001):
        step = host.step(actions)
        assert not step.terminated[0]
        assert step.truncated[0] == (t % 1000 == 0)
    assert not np.array_equal(step.observation, step.next_observation)


def test_fall_terminates_and_environments_end_alone():
    host = make_host("InvertedPendulum-v5", 2)
    host.reset(np.array([0, 1]))
    for _ in range(200):
        step = host.step(np.array([[1.0], [0.0]], np.float32))  # pushed over, and left to fall slowly
        ended = step.terminated
        assert not step.truncated.any()
        fallen = np.abs(step.next_observation[:, 1]) > 0.2
        np.testing.assert_array_equal(ended, fallen)
        assert np.abs(step.observation[:, 1]).max() <= 0.2  # the next episode has begun upright
        if ended[0] and not ended[1]:
            np.testing.assert_array_equal(step.observation[1], step.next_observation[1])
            return
    pytest.fail("the pushed pendulum never fell alone")


def test_ending_in_the_last_step_is_terminated():
    host = make_host("InvertedPendulum-v5", 1)
    host.reset(np.array([0]))
    push = np.ones((1, 1), np.float32)
    length = next(t for t in range(1, 200) if host.step(push).terminated[0])
    limited = make_host("InvertedPendulum-v5", 1, max_episode_steps=length)
    limited.reset(np.array([0]))
    for _ in range(length):
        step = limited.step(push)
    assert step.terminated[0] and not step.truncated[0]


@pytest.mark.parametrize("id", ["Hopper-v5", "CartPole-v1", "dm_control/reacher-easy-v0"])
def test_seeds_reproduce_and_differ(id):
    host = make_host(id, 3, max_episode_steps=10)
    fresh = make_host(id, 3, max_episode_steps=10)

    def run(host):
        rng = np.random.default_rng(0)
        first = host.reset(np.array([1, 2, 1]))
        shared = [random_actions(host, rng)[:1].repeat(3, axis=0) for _ in range(25)]
        return [first] + [host.step(actions) for actions in shared]

    trajectory = run(host)
    assert bits(run(host)) == bits(trajectory)  # whatever happened before
    assert bits(run(fresh)) == bits(trajectory)
    for leaf in jax.tree.leaves([step.observation for step in trajectory[1:]]):
        np.testing.assert_array_equal(leaf[0], leaf[2])
    assert any(not np.array_equal(leaf[0], leaf[1]) for leaf in jax.tree.leaves(trajectory[0]))


@pytest.mark.parametrize("id", ["HalfCheetah-v5", "CartPole-v1", "dm_control/ball_in_cup-catch-v0"])
def test_returned_arrays_are_never_overwritten(id):
    host = make_host(id, 2, max_episode_steps=3)
    rng = np.random.default_rng(0)
    returned = [host.reset(np.arange(2))]
    before = [bits(returned[0])]
    for _ in range(8):
        returned.append(host.step(random_actions(host, rng)))
        before.append(bits(returned[-1]))
    state = host.get_state()
    frozen = bits(state)
    host.step(random_actions(host, rng))
    host.set_state(state)
    host.step(random_actions(host, rng))
    host.reset(np.arange(2))
    assert [bits(tree) for tree in returned] == before
    assert bits(state) == frozen


class Recorder(gymnasium.Env):
    """Keeps what it was given. State in an attribute that cannot be saved."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.opaque = iter(range(1000))
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1000)))
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.actions.append(action)
        return self.observation_space.sample(), 1.0, False, False, {}


@pytest.fixture
def recorder():
    """Registers a Recorder with the given spaces; returns (host, the raw environments)."""
    made = []

    def build(observation_space, action_space, num_envs=1, **registration):
        def construct(**_):
            made.append(Recorder(observation_space, action_space))
            return made[-1]

        gymnasium.register("HostRecorder-v0", entry_point=construct, **registration)
        return make_host("HostRecorder-v0", num_envs), made

    yield build
    gymnasium.registry.pop("HostRecorder-v0", None)


UNIT = spaces.Box(-1, 1, (1,))


def test_continuous_actions_are_clipped_and_rescaled(recorder):
    host, (raw,) = recorder(UNIT, spaces.Box(np.array([-2, 0, 1], np.float32), np.array([2, 10, 1.5], np.float32)))
    assert host.spec.action == ArraySpec((3,), np.dtype(np.float32))
    host.reset(np.array([0]))
    for action in ([-1, -1, -1], [0, 0, 0], [1, 1, 1], [0.5, -0.5, 9], [-9, 0, 0]):
        host.step(np.array([action], np.float32))
    expected = [[-2, 0, 1], [0, 5, 1.25], [2, 10, 1.5], [1, 2.5, 1.5], [-2, 5, 1.25]]
    np.testing.assert_allclose(raw.actions, expected, rtol=1e-6)
    assert raw.actions[0].dtype == np.float32
    with pytest.raises(ValueError, match="shape"):
        host.step(np.zeros(3, np.float32))


def test_discrete_actions_respect_the_start(recorder):
    host, raw = recorder(UNIT, spaces.Discrete(3, start=-1), num_envs=2)
    assert host.spec.num_actions == 3
    host.reset(np.arange(2))
    host.step(np.array([0, 2], np.int32))
    assert [env.actions for env in raw] == [[-1], [1]]


def test_observation_spaces(recorder):
    space = spaces.Dict(
        {
            "z": spaces.Box(-1, 1, (3,), np.float64),
            "pixels": spaces.Box(0, 255, (4, 5, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(4, start=2), spaces.MultiBinary(3))),
            "count": spaces.Box(0, 9, (2,), np.int64),
            "quantity": spaces.Box(0, 10**6, (2,), np.int64),
            "scalar": spaces.Box(-1, 1, ()),
        }
    )
    host, _ = recorder(space, UNIT, num_envs=2)
    floats, integers = np.dtype(np.float32), np.dtype(np.int32)
    assert host.spec.observation == {
        "z": ArraySpec((3,), floats),
        "pixels": ArraySpec((4, 5, 3), np.dtype(np.uint8)),
        "pair": (ArraySpec((), integers, 6), ArraySpec((3,), integers, 2)),
        "count": ArraySpec((2,), integers, 10),
        "quantity": ArraySpec((2,), floats),
        "scalar": ArraySpec((), floats),
    }
    observation = host.reset(np.arange(2))
    for given in (observation, host.step(np.zeros((2, 1), np.float32)).observation):
        jax.tree.map(
            lambda spec, array: (array.shape, array.dtype) == ((2, *spec.shape), spec.dtype) or pytest.fail(str(spec)),
            host.spec.observation,
            given,
        )
    space.seed(int(np.random.Generator(np.random.PCG64(np.random.SeedSequence(0))).integers(1000)))
    expected = space.sample()
    np.testing.assert_array_equal(make_host("HostRecorder-v0", 1).reset(np.array([0]))["pixels"][0], expected["pixels"])
    assert expected["pair"][0] in range(2, 6)


def test_uncapturable_environments_start_new_episodes(recorder):
    host, _ = recorder(UNIT, spaces.Discrete(2), num_envs=2, max_episode_steps=5)
    host.reset(np.arange(2))
    actions = np.zeros(2, np.int32)
    for _ in range(3):
        host.step(actions)
    assert not host.exact_resume
    state = through_a_file(host.get_state())
    resumed = make_host("HostRecorder-v0", 2)
    resumed.set_state(state)
    assert resumed.observation.shape == (2, 1)
    assert [resumed.step(actions).truncated.any() for _ in range(5)] == [False] * 4 + [True]


def test_pixels_are_whole_where_a_resume_breaks_episodes_off(recorder):
    pixels = spaces.Box(0, 255, (4, 4, 3), np.uint8)
    host, (raw,) = recorder(pixels, spaces.Discrete(2), max_episode_steps=5)
    assert host.spec.observation.frames == 0
    del raw.opaque  # what could not be saved
    host = LoopedEnvironment("HostRecorder-v0", host._environments)
    assert host.exact_resume and host.spec.observation.frames == 1
    raw.step = lambda action: (pixels.sample(), 1.0, False, True, {})  # before the limit: the ring would lose it
    host = LoopedEnvironment("HostRecorder-v0", host._environments)
    host.reset(np.array([0]))
    host._steps = [raw.step]
    with pytest.raises(UserError, match="truncated after 1 steps, before its limit of 5"):
        host.step(np.zeros(1, np.int32))


def test_registered_wrappers_and_limits_are_kept(recorder):
    wrapper = WrapperSpec("RescaleObservation", "gymnasium.wrappers:RescaleObservation", {"min_obs": 5, "max_obs": 6})
    host, _ = recorder(UNIT, UNIT, additional_wrappers=(wrapper,), max_episode_steps=2)
    assert host.reset(np.array([0])).min() >= 5
    assert host.spec.max_episode_steps == 2
    steps = [host.step(np.zeros((1, 1), np.float32)) for _ in range(4)]
    assert [bool(step.truncated[0]) for step in steps] == [False, True, False, True]
    assert steps[0].next_observation.min() >= 5


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (UNIT, spaces.Box(-np.inf, np.inf, (2,))),
        (UNIT, spaces.MultiDiscrete([2, 3])),
        (spaces.Text(5), UNIT),
    ],
)
def test_unsupported_spaces(recorder, observation, action):
    with pytest.raises(UserError, match="not supported"):
        recorder(observation, action)


@pytest.mark.parametrize(
    "id",
    ["HalfCheetah-v3", "NoSuch-v0", "dm_control/cartpole-v0", "dm_control/no-such-v0", "dm_control/lqr-lqr_2_1-v0"],
)
def test_refused_ids_are_user_errors_of_one_line(id):
    with pytest.raises(UserError) as error:
        make_host(id, 1)
    assert "\n" not in str(error.value)


def test_known_ids():
    ids = known_host_ids()
    assert len(ids) == len(set(ids))
    assert {"HalfCheetah-v5", "CartPole-v1", "dm_control/walker-run-v0", "dm_control/humanoid_CMU-run-v0"} <= set(ids)
    assert not [id for id in ids if id.startswith(("phys2d/", "tabular/"))]


@pytest.mark.parametrize("id", ["dm_control/cartpole-swingup-v0", "Hopper-v5", "CartPole-v1"])
def test_a_repeated_action_is_so_many_steps_with_their_rewards_summed(id):
    once, repeated = make_host(id, 1, max_episode_steps=100), make_host(id, 1, max_episode_steps=100, action_repeat=3)
    assert repeated.spec == dataclasses.replace(once.spec, max_episode_steps=33, action_repeat=3)
    assert repeated.frames_per_second == once.frames_per_second / 3
    rng, ended = np.random.default_rng(0), 0
    for host in (once, repeated):
        host.reset(np.array([5]))
    for _ in range(60):
        actions, reward = random_actions(once, rng), np.zeros(1)
        for _ in range(3):
            step = once.step(actions)
            reward += step.reward
            if step.terminated[0]:
                break
        longer = repeated.step(actions)
        np.testing.assert_allclose(longer.reward, reward, rtol=1e-6)
        assert bits((longer.next_observation, longer.terminated)) == bits((step.next_observation, step.terminated))
        if longer.truncated[0]:
            break
        ended += int(longer.terminated[0])
    assert ended or longer.truncated[0]


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True)])
def test_no_step_is_taken_after_an_ending_within_a_repeat(terminated, truncated):
    calls = []

    def step(action):
        calls.append(action)
        ends = len(calls) == 2
        return len(calls), 1.5, ends and terminated, ends and truncated, None

    assert _repeated(step, 5)("a") == (2, 3.0, terminated, truncated, None) and calls == ["a", "a"]


def test_a_state_of_another_repeat_is_refused():
    once, twice = make_host("Pendulum-v1", 1), make_host("Pendulum-v1", 1, action_repeat=2)
    for each in (once, twice):
        each.reset(np.array([0]))
    with pytest.raises(UserError, match="is of action repeat 1, not 2"):
        twice.set_state(once.get_state())


def test_absorbing_states_come_with_repeats():
    both = with_absorbing(make("Hopper-v5", action_repeat=4))
    assert both.spec.action_repeat == 4 and both.spec.max_episode_steps == 251


@pytest.mark.parametrize("repeat", [0, 51])
def test_repeats_longer_than_an_episode_are_refused(repeat):
    with pytest.raises(UserError, match=f"action-repeat of Pendulum-v1 must be from 1 to 50, not {repeat}"):
        make_host("Pendulum-v1", 1, max_episode_steps=50, action_repeat=repeat)


@pytest.mark.parametrize("id", ["phys2d/Pendulum-v0", "gridworld/FourRooms-v0", "ALE/Pong-v5"])
def test_only_host_environments_repeat_actions(id):
    with pytest.raises(UserError, match=f"action-repeat is for .* not {id}" + ("; use --atari.frame" * ("ALE" in id))):
        make(id, action_repeat=2)
