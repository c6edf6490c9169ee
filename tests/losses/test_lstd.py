"""Least squares on one-hot features are dynamic programming."""

import numpy as np

from offpolicy_jax.environments import four_rooms
from offpolicy_jax.losses import lstd
from offpolicy_jax.transition import Transition

CELLS, DISCOUNT = len(four_rooms.CELLS), 0.9


def every_step():
    """Each cell and move once, with the goal's reward and ending."""
    cell, action = (x.ravel() for x in np.meshgrid(np.arange(CELLS), np.arange(4), indexing="ij"))
    successor = four_rooms.SUCCESSOR[cell, action]
    terminated = successor == four_rooms.GOAL
    one_hot = np.eye(CELLS, dtype=np.float32)
    return (
        one_hot[cell],
        action.astype(np.int32),
        terminated.astype(np.float32),
        terminated,
        one_hot[successor],
        successor,
    )


def test_lstd_q_solves_the_equations_of_a_policy():
    features, action, reward, terminated, following, successor = every_step()
    weights = lstd.lstd_q(
        features, action, reward, terminated, following, np.full((len(action), 4), 0.25, np.float32), DISCOUNT, 1e-9
    )
    q = np.zeros((CELLS, 4))
    for _ in range(300):
        q = (reward + DISCOUNT * ~terminated * q.mean(1)[successor]).reshape(CELLS, 4)
    np.testing.assert_allclose(weights, q, atol=1e-4)


def test_lspi_finds_the_shortest_ways():
    features, action, reward, terminated, following, successor = every_step()
    weights = lstd.lspi(features, action, reward, terminated, following, 4, DISCOUNT, 1e-9, iterations=30)
    q = np.zeros((CELLS, 4))
    for _ in range(300):
        q = (reward + DISCOUNT * ~terminated * q.max(1)[successor]).reshape(CELLS, 4)
    np.testing.assert_allclose(weights, q, atol=1e-3)


def test_the_linear_layer_has_the_weight_of_one_as_its_bias():
    features, action, reward, terminated, following, _ = every_step()
    features, following = features[:, ::2], following[:, ::2]  # half of the cells look alike
    batch = Transition(features, action, reward, following, terminated, np.zeros_like(terminated))
    head = lstd.lspi_head(batch, 4, DISCOUNT, 1e-3, 5)
    one = np.ones((len(action), 1), np.float32)
    features, following = (np.concatenate([x, one], axis=1) for x in (features, following))
    weights = lstd.lspi(features, action, reward, terminated, following, 4, DISCOUNT, 1e-3, 5)
    np.testing.assert_allclose(np.concatenate([head["kernel"], head["bias"][None]]), weights, atol=1e-5)
