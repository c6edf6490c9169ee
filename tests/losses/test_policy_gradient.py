"""Advantages against sums by hand, PPO's losses against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import policy_gradient as losses

T, E, DISCOUNT, TRACE = 12, 3, 0.9, 0.8
RNG = np.random.default_rng(0)
REWARD, VALUE, NEXT_VALUE = RNG.normal(size=(3, T, E)).astype(np.float32)
TERMINATED, TRUNCATED = RNG.random((2, T, E)) < 0.15
MASK = np.array([True, True, False, True, True, False])
B = len(MASK)


def by_hand(valid):
    """sum_k (gamma lambda)^k delta_{t+k}, up to and with the first ending or the last row that is valid."""
    advantages = np.zeros((T, E))
    for e in range(E):
        for t in range(T):
            weight = 1.0
            for k in range(t, T):
                if not valid[k, e]:
                    break
                future = 0.0 if TERMINATED[k, e] else NEXT_VALUE[k, e]
                advantages[t, e] += weight * (REWARD[k, e] + DISCOUNT * future - VALUE[k, e])
                weight *= DISCOUNT * TRACE
                if TERMINATED[k, e] or TRUNCATED[k, e]:
                    break
    return advantages


def advantages(**changes):
    arguments = {"reward": REWARD, "terminated": TERMINATED, "truncated": TRUNCATED}
    arguments |= {"value": VALUE, "next_value": NEXT_VALUE, "discount": DISCOUNT, "trace": TRACE}
    return losses.generalized_advantages(**(arguments | changes))


@pytest.mark.parametrize("rows", [T, 7])
def test_advantages_are_the_sum_of_td_errors(rows):
    valid = np.broadcast_to(np.arange(T)[:, None] < rows, (T, E))
    assert TERMINATED.any() and TRUNCATED.any()
    np.testing.assert_allclose(advantages(valid=valid), by_hand(valid), rtol=1e-4, atol=1e-5)


def test_a_truncated_row_bootstraps_and_a_terminated_one_does_not():
    no, yes = np.zeros((T, E), bool), np.ones((T, E), bool)
    truncated, terminated = advantages(terminated=no, truncated=yes), advantages(terminated=yes, truncated=no)
    np.testing.assert_allclose(truncated, REWARD + DISCOUNT * NEXT_VALUE - VALUE, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(terminated, REWARD - VALUE, rtol=1e-5, atol=1e-6)


def test_trace_one_is_the_return_and_zero_the_td_error():
    no = np.zeros((T, E), bool)
    one_step = advantages(trace=0.0, terminated=no, truncated=no)
    np.testing.assert_allclose(one_step, REWARD + DISCOUNT * NEXT_VALUE - VALUE, rtol=1e-5, atol=1e-6)
    chain = np.concatenate([VALUE[1:], NEXT_VALUE[-1:]])  # successors' values are those of the next rows
    whole = advantages(trace=1.0, terminated=no, truncated=no, next_value=chain)
    weights = DISCOUNT ** np.arange(T)
    np.testing.assert_allclose(whole[0], weights @ REWARD + DISCOUNT**T * chain[-1] - VALUE[0], rtol=1e-4, atol=1e-5)


def test_no_gradient_flows_through_advantages():
    gradient = jax.grad(lambda v: jnp.sum(advantages(value=v, next_value=v)))(VALUE)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_surrogate_is_numpy_s_and_stops_where_it_is_clipped():
    log_ratio, advantage = RNG.normal(scale=0.4, size=(2, B)).astype(np.float32)
    ratio = np.exp(log_ratio)
    each = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    np.testing.assert_allclose(losses.clipped_surrogate(log_ratio, advantage, 0.2, MASK), -each[MASK].mean(), rtol=1e-5)
    log_ratio, advantage = np.log([1.3, 1.3, 0.7, 0.7, 1.1, 1.0]), np.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])
    gradient = jax.grad(losses.clipped_surrogate)(jnp.asarray(log_ratio), jnp.asarray(advantage), 0.2, np.ones(B, bool))
    np.testing.assert_array_equal(np.asarray(gradient) != 0.0, [False, True, True, False, True, True])


def test_at_the_old_policy_the_surrogate_has_the_policy_gradient():
    advantage = RNG.normal(size=B).astype(np.float32)
    gradient = jax.grad(losses.clipped_surrogate)(jnp.zeros(B), advantage, 0.2, np.ones(B, bool))
    np.testing.assert_allclose(gradient, -advantage / B, rtol=1e-6)


def test_the_value_loss_takes_the_worse_of_both():
    value, old, target = RNG.normal(size=(3, B)).astype(np.float32)
    near = old + np.clip(value - old, -0.2, 0.2)
    each = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2)
    np.testing.assert_allclose(losses.value_loss(value, old, target, 0.2, MASK), each[MASK].mean(), rtol=1e-5)
    free = 0.5 * np.mean((value - target)[MASK] ** 2)
    np.testing.assert_allclose(losses.value_loss(value, old, target, np.inf, MASK), free, rtol=1e-5)


def test_the_sampled_kl_is_unbiased_and_never_negative():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.35, 0.25])
    log_ratio, one = jnp.log(q / p), np.ones(1, bool)
    each = np.array([losses.sampled_kl(log_ratio[i : i + 1], one) for i in range(3)])
    assert np.all(each > 0.0) and losses.sampled_kl(jnp.zeros(1), one) == 0.0
    np.testing.assert_allclose(p @ each, np.sum(p * np.log(p / q)), rtol=1e-4)


def test_standardized_samples_of_the_mask():
    x = RNG.normal(3.0, 2.0, size=B).astype(np.float32)
    out = np.asarray(losses.standardize(x, MASK))
    np.testing.assert_allclose([out[MASK].mean(), out[MASK].std()], [0.0, 1.0], atol=1e-5)
    np.testing.assert_array_equal(out[~MASK], 0.0)
    assert losses.masked_mean(x, np.zeros(B, bool)) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: advantages(reward=REWARD[:, 0]),
        lambda: advantages(value=VALUE[:, :1]),
        lambda: losses.clipped_surrogate(jnp.zeros((B, 1)), jnp.zeros(B), 0.2, MASK),
        lambda: losses.clipped_surrogate(jnp.zeros(B), jnp.zeros(1), 0.2, MASK),
        lambda: losses.value_loss(jnp.zeros(B), jnp.zeros(B), jnp.zeros((B, 1)), 0.2, MASK),
        lambda: losses.masked_mean(jnp.zeros(B), np.ones(1, bool)),
    ],
)
def test_shapes_that_would_broadcast_raise(call):
    with pytest.raises(AssertionError):
        call()
