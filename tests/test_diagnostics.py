"""The value bias against a brute-force sum, and where it must be exact."""

import numpy as np
import pytest

from offpolicy_jax.diagnostics import value_bias

DISCOUNT = 0.9
RNG = np.random.default_rng(0)


def brute_force(value, reward, bonus, terminated, length, discount, tail):
    """Every start on its own: rewards and later bonuses, then the prediction at a cut."""
    errors, predictions = [], []
    for e in range(value.shape[1]):
        n = length[e]
        ended = terminated[n - 1, e]
        for t in range(n):
            if not ended and (t == n - 1 or discount ** (n - 1 - t) > tail):
                continue
            weights = discount ** np.arange(n - t)
            if ended:
                total = weights @ reward[t:n, e] + weights[1:] @ bonus[t + 1 : n, e]
            else:
                total = weights[:-1] @ reward[t : n - 1, e] + weights[1:] @ bonus[t + 1 : n, e]
                total += weights[-1] * value[n - 1, e]
            errors.append(value[t, e] - total)
            predictions.append(value[t, e])
    return np.mean(errors), np.mean(predictions)


def episodes(ends, terminated, steps=40):
    """Random predictions, rewards and bonuses of E episodes in (T, E), with rubbish after their ends."""
    value, reward, bonus = RNG.normal(size=(3, steps, len(ends)))
    done = np.zeros((steps, len(ends)), bool)
    done[np.array(ends) - 1, np.arange(len(ends))] = terminated
    return value, reward, bonus, done, np.array(ends)


@pytest.mark.parametrize("terminated", [[False, False, False], [True, True, True], [True, False, True]])
def test_it_is_the_mean_over_every_start_that_counts(terminated):
    arrays = episodes([40, 30, 5], terminated)
    bias, value = value_bias(*arrays, DISCOUNT, tail=0.2)
    np.testing.assert_allclose((bias, value), brute_force(*arrays, DISCOUNT, 0.2))


def test_what_follows_the_first_episode_does_not_count():
    value, reward, bonus, done, length = episodes([20, 30], [True, False])
    expected = value_bias(value, reward, bonus, done, length, DISCOUNT)
    after = np.arange(40)[:, None] >= length
    done = done | (after & (RNG.random(done.shape) < 0.5))
    rubbish = [np.where(after, 1e6, x) for x in (value, reward, bonus)]
    np.testing.assert_allclose(value_bias(*rubbish, done, length, DISCOUNT), expected)


def test_seeds_have_their_own_answer_and_discount():
    arrays = [episodes([40, 25], [False, True]) for _ in range(3)]
    stacked = [np.stack(x, axis=-2) for x in zip(*[a[:4] for a in arrays], strict=True)]  # (T, S, E)
    length = np.stack([a[4] for a in arrays])
    discounts = np.array([0.5, 0.8, 0.9])
    alone = [value_bias(*a, d) for a, d in zip(arrays, discounts, strict=True)]
    np.testing.assert_allclose(np.transpose(value_bias(*stacked, length, discounts)), alone)


def test_true_values_have_no_bias_and_a_constant_one_shows():
    """Reward 1 and bonus 0.5 for ever; cut after 60 steps."""
    steps = 60
    true = (1.0 + DISCOUNT * 0.5) / (1.0 - DISCOUNT)
    one = np.ones((steps, 1))
    rest = (one, 0.5 * one, np.zeros((steps, 1), bool), np.array([steps]))
    np.testing.assert_allclose(value_bias(true * one, *rest, DISCOUNT)[0], 0.0, atol=1e-9)
    bias, value = value_bias((true + 2.0) * one, *rest, DISCOUNT, tail=1e-2)
    assert 2.0 * 0.99 <= bias <= 2.0
    np.testing.assert_allclose(value, true + 2.0)


def test_episodes_that_are_too_short_have_no_answer():
    arrays = episodes([10, 10], [False, False])
    assert all(np.isnan(value_bias(*arrays, 0.99)))
