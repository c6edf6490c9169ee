"""ValueDICE's objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import value_dice as losses

EXPERT, REPLAYED, INITIAL = (np.random.default_rng(0).normal(size=n).astype(np.float32) for n in (5, 3, 4))


def test_it_is_the_objective_by_hand():
    rho, discount = 0.1, 0.9
    exponential = (1 - rho) * np.mean(np.exp(EXPERT)) + rho * np.mean(np.exp(REPLAYED))
    expected = np.log(exponential) - (1 - rho) * (1 - discount) * INITIAL.mean() - rho * REPLAYED.mean()
    np.testing.assert_allclose(losses.objective(EXPERT, REPLAYED, INITIAL, rho, discount), expected, rtol=1e-5)


def test_large_differences_do_not_overflow():
    value = losses.objective(EXPERT + 1e3, REPLAYED, INITIAL, 0.1, 0.9)
    assert np.isfinite(value) and value > 900.0


def test_a_constant_more_of_nu_changes_nothing():
    """d shifts by (1 - gamma) c, and so do both terms."""
    before = losses.objective(EXPERT, REPLAYED, INITIAL, 0.3, 0.8)
    after = losses.objective(EXPERT + 0.2 * 5.0, REPLAYED + 0.2 * 5.0, INITIAL + 5.0, 0.3, 0.8)
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("rho", [1e-6, 0.3])
def test_its_minimum_over_nu_is_minus_the_kl_of_the_mixed_distributions(rho):
    """One step (gamma = 0): nu = log((1 - rho) pi + rho d) / ((1 - rho) p_e + rho d)."""
    expert, policy, replay = np.array([8, 3, 1]) / 12, np.array([2, 4, 6]) / 12, np.array([3, 6, 3]) / 12
    rows = lambda p: np.repeat(np.arange(3), np.round(12 * p).astype(int))  # noqa: E731

    def objective(nu):
        return losses.objective(nu[rows(expert)], nu[rows(replay)], nu[rows(policy)], rho, 0.0)

    of_policy, of_expert = (1 - rho) * policy + rho * replay, (1 - rho) * expert + rho * replay
    best = jnp.asarray(np.log(of_policy / of_expert), jnp.float32)
    np.testing.assert_allclose(jax.grad(objective)(best), 0.0, atol=1e-6)
    np.testing.assert_allclose(objective(best), -np.sum(of_policy * np.log(of_policy / of_expert)), rtol=1e-4)


@pytest.mark.parametrize("index", range(3))
def test_shapes_are_checked(index):
    arguments = [EXPERT, REPLAYED, INITIAL]
    arguments[index] = arguments[index][:, None]
    with pytest.raises(AssertionError):
        losses.objective(*arguments, 0.1, 0.9)
