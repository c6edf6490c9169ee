"""DQN's equations against loops over the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import dqn

RNG = np.random.default_rng(6)
B, A = 7, 3
Q, NEXT_Q, TARGET_Q = (RNG.normal(size=(B, A)).astype(np.float32) for _ in range(3))
ACTION = RNG.integers(A, size=B).astype(np.int32)
REWARD = RNG.normal(size=B).astype(np.float32) * 3
TERMINATED = np.array([0, 1, 0, 0, 1, 0, 0], bool)


@pytest.mark.parametrize("double", [False, True])
def test_who_chooses_the_next_action(double):
    value = dqn.next_value(NEXT_Q, TARGET_Q, double)
    chooser = NEXT_Q if double else TARGET_Q
    np.testing.assert_array_equal(value, [TARGET_Q[i, chooser[i].argmax()] for i in range(B)])
    assert np.any(dqn.next_value(NEXT_Q, TARGET_Q, True) < dqn.next_value(NEXT_Q, TARGET_Q, False))


def test_the_loss_is_hubers_and_terminal_states_have_no_future():
    value, discount = TARGET_Q.max(1), RNG.random(B).astype(np.float32)
    losses = []
    for i in range(B):
        x = abs(Q[i, ACTION[i]] - (REWARD[i] + discount[i] * (0 if TERMINATED[i] else value[i])))
        losses.append(0.5 * x**2 if x <= 1.5 else 1.5 * (x - 0.75))
    assert min(losses) < 1.125 < max(losses)  # both branches are met
    np.testing.assert_allclose(
        dqn.q_loss(Q, ACTION, REWARD, TERMINATED, value, discount, 1.5), np.mean(losses), rtol=1e-6
    )


def test_the_target_carries_no_gradient_and_the_error_s_is_clipped():
    loss = lambda q, value: dqn.q_loss(q, ACTION, REWARD * 100, TERMINATED, value, 0.9)  # noqa: E731
    gradient, through_target = jax.grad(loss, (0, 1))(Q, TARGET_Q[:, 0])
    assert not np.any(through_target)
    taken = np.zeros((B, A), bool)
    taken[np.arange(B), ACTION] = True
    np.testing.assert_allclose(np.abs(gradient[taken]), 1 / B, rtol=1e-6)
    assert not np.any(gradient[~taken])


@pytest.mark.parametrize("changes", [{"action": ACTION[:, None]}, {"reward": REWARD[:, None]}, {"value": Q}])
def test_shapes_that_do_not_fit_are_refused(changes):
    arguments = {"action": ACTION, "reward": REWARD, "value": TARGET_Q[:, 0]} | changes
    with pytest.raises(AssertionError):
        dqn.q_loss(Q, arguments["action"], arguments["reward"], TERMINATED, jnp.asarray(arguments["value"]), 0.9)
