"""The tabular tasks of the PROPS claims, and what is measured on them."""

import sys

import jax
import numpy as np
import pytest

from agents import ppo, props
from tests.experiments.test_scripts import EXPERIMENTS, module


@pytest.fixture(scope="module")
def sampling():
    sys.path.insert(0, str(EXPERIMENTS / "claims"))
    yield module("claims/sampling.py")
    sys.path.remove(str(EXPERIMENTS / "claims"))


def walk(environment, actions):
    """Rewards and endings of a sequence of actions."""
    state, _ = environment.reset(jax.random.key(0))
    rows = []
    for action in actions:
        state, step = jax.jit(environment.step)(state, np.int32(action))
        rows.append(
            (int(step.next_observation), round(float(step.reward), 3), bool(step.terminated), int(step.observation))
        )
    return rows


def test_the_grid_world_bumps_and_ends_in_the_corner(sampling):
    grid = sampling.GridWorld()
    assert walk(grid, [0, 3, 1, 2]) == [
        (0, -1.0, False, 0),
        (1, -0.1, False, 1),
        (9, -0.1, False, 9),
        (8, -0.1, False, 8),
    ]
    way = walk(grid, [1] * 7 + [3] * 7)
    assert way[-1] == (63, 1.0, True, 0) and not any(row[2] for row in way[:-1])
    state, _ = grid.reset(jax.random.key(0))
    for _ in range(100):
        state, step = jax.jit(grid.step)(state, np.int32(0))
    assert bool(step.truncated) and not bool(step.terminated)


def test_the_two_step_task_pays_as_stated(sampling):
    task = sampling.TwoStep()
    assert walk(task, [0, 0]) == [(1, 0.0, False, 1), (0, 2.0, True, 0)]
    assert walk(task, [0, 1])[-1] == (0, 0.5, True, 0)
    assert walk(task, [1]) == [(1, 1.0, True, 0)]


def test_a_given_target_collects_and_its_error_is_exact_either_way(sampling):
    """All seeds start from the policy that is given; the fit and the count agree."""
    target = ppo.Config(learning_rate=0.0, epochs=1, minibatches=1, rollout_length=256, **sampling.LINEAR)
    config = props.Config(target=target, learning_rate=0.0, epochs=1, minibatches=1, rollout_length=64)
    first = sampling.Collection(config, "claims/TwoStep", 2, 256)
    policy = jax.tree.map(lambda x: 0.0 * x + 1.0, first.target.parameters["policy"])
    policy["params"]["Dense_0"]["kernel"] = np.array(2 * [[[2.0, 0.0], [0.0, 0.0]]], np.float32)
    run = sampling.Collection(config, "claims/TwoStep", 2, 256, policy)
    run.advance(256)
    jax.tree.map(np.testing.assert_array_equal, run.target.parameters["policy"], policy)
    first_action = np.asarray(run.replay.storage.action)[np.asarray(run.replay.storage.observation) == 0]
    np.testing.assert_allclose(np.mean(first_action == 0), 1 / (1 + np.exp(-2.0)), atol=0.08)
    exact = np.asarray(sampling.tabular_errors(run.replay, run.target))
    np.testing.assert_allclose(sampling.replay_errors(run.replay, run.target), exact, rtol=0.02, atol=1e-6)
    assert exact.shape == (2,) and exact[0] != exact[1] and np.all(exact > 0)
