"""DSAC-T's equations against NumPy, their gradients by hand, their limits and their fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.losses import dsac_t
from offpolicy_jax.losses.td import squared_td_error

RNG = np.random.default_rng(5)
N, B = 3, 6


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape):
    return RNG.uniform(0.2, 2.0, size=shape).astype(np.float32)


Q, NEXT_Q, STD, NEXT_STD = array(N, B), array(N, B), positive(N, B), positive(N, B)
TARGET, NOISE, REWARD, NEXT_LOG_PROB = array(B), array(B), array(B), array(B)
CLIPPED, SCALE, MEAN_STD = Q + 2.0 * array(N, B), positive(N), positive(N)
TERMINATED = np.array([0, 1, 0, 1, 0, 0], bool)
ALPHA, DISCOUNT, EPSILON, WIDTH = jnp.float32(0.3), 0.9, 0.1, 3.0

BOTH = pytest.mark.parametrize("loss", [dsac_t.critic_loss, dsac_t.huber_loss])


def targets(**changes):
    arguments = {
        "reward": REWARD,
        "terminated": TERMINATED,
        "next_value": dsac_t.least_value(NEXT_Q, NEXT_STD, NOISE),
        "next_log_prob": NEXT_LOG_PROB,
        "alpha": ALPHA,
        "discount": DISCOUNT,
    }
    return dsac_t.targets(**(arguments | changes))


def gradients(loss=dsac_t.critic_loss, **changes):
    """By the outputs of both heads: q and sigma."""
    arguments = {"target": TARGET, "clipped": CLIPPED, "scale": SCALE, "epsilon": EPSILON} | changes
    q, std = arguments.pop("q", Q), arguments.pop("std", STD)
    return jax.grad(lambda q, std: loss(q, std, **arguments), argnums=(0, 1))(q, std)


def huber(x):
    return np.where(np.abs(x) <= 50.0, 0.5 * x**2, 50.0 * (np.abs(x) - 25.0))


# The next value


def test_least_value_equals_numpy():
    mean, sample = dsac_t.least_value(NEXT_Q, NEXT_STD, NOISE)
    for b in range(B):
        i = np.argmin(NEXT_Q[:, b])
        np.testing.assert_allclose(mean[b], NEXT_Q[i, b], rtol=1e-6)
        np.testing.assert_allclose(sample[b], NEXT_Q[i, b] + NEXT_STD[i, b] * NOISE[b], rtol=1e-5)
    assert len(set(np.argmin(NEXT_Q, 0))) == N  # the numbers above ask for each critic


def test_mean_and_sample_are_of_the_same_critic():
    """The sample of the least mean, not the least sample: the second critic's would be -9 and 1 - 10 * 3."""
    q, std = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [10.0, 10.0]])
    mean, sample = dsac_t.least_value(q, std, np.array([-1.0, 2.0]))
    np.testing.assert_array_equal(mean, [0.0, 0.0])
    np.testing.assert_array_equal(sample, [-1.0, 2.0])


def test_the_noise_is_clipped_at_three():
    q, std = np.zeros((1, 6), np.float32), np.full((1, 6), 2.0, np.float32)
    _, sample = dsac_t.least_value(q, std, np.array([-100.0, -3.5, -2.75, 2.75, 3.5, 100.0], np.float32))
    np.testing.assert_array_equal(sample, [-6.0, -6.0, -5.5, 5.5, 6.0, 6.0])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_the_order_of_the_critics_does_not_matter(order):
    permuted = targets(next_value=dsac_t.least_value(NEXT_Q[order], NEXT_STD[order], NOISE))
    for a, b in zip(permuted, targets(), strict=True):
        np.testing.assert_array_equal(a, b)
    mixed = targets(next_value=dsac_t.least_value(NEXT_Q[order], NEXT_STD, NOISE))  # sigmas of other critics
    np.testing.assert_array_equal(mixed[0], targets()[0])
    assert np.any(mixed[1] != targets()[1])


# Targets


def test_targets_equal_numpy():
    expected, random = targets()
    for b in range(B):
        i, going_on = np.argmin(NEXT_Q[:, b]), 1.0 - TERMINATED[b]
        value = NEXT_Q[i, b] - 0.3 * NEXT_LOG_PROB[b]
        np.testing.assert_allclose(expected[b], REWARD[b] + 0.9 * going_on * value, rtol=1e-5)
        value += NEXT_STD[i, b] * NOISE[b]
        np.testing.assert_allclose(random[b], REWARD[b] + 0.9 * going_on * value, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"terminated": np.ones(B, bool)}, {"discount": 0.0}])
def test_targets_are_the_reward_without_a_future(changes):
    for target in targets(**changes):
        np.testing.assert_array_equal(target, REWARD)


def test_without_noise_both_targets_are_equal():
    expected, random = targets(next_value=dsac_t.least_value(NEXT_Q, NEXT_STD, np.zeros(B, np.float32)))
    np.testing.assert_array_equal(expected, random)
    assert np.all((targets()[0] != targets()[1]) == ~TERMINATED)


def test_targets_have_no_gradient():
    def total(next_q, next_std, noise, inputs):
        return sum(map(jnp.sum, targets(next_value=dsac_t.least_value(next_q, next_std, noise), **inputs)))

    inputs = {"reward": REWARD, "next_log_prob": NEXT_LOG_PROB, "alpha": ALPHA, "discount": DISCOUNT}
    for gradient in jax.tree.leaves(jax.grad(total, argnums=(0, 1, 2, 3))(NEXT_Q, NEXT_STD, NOISE, inputs)):
        np.testing.assert_array_equal(gradient, 0.0)


# The clipped return


def test_clipped_return_equals_numpy():
    boundary = np.array([0.5, 1.0, 10.0], np.float32)
    clipped = dsac_t.clipped_return(Q, TARGET, boundary)
    for i in range(N):
        for b in range(B):
            expected = Q[i, b] + min(max(TARGET[b] - Q[i, b], -boundary[i]), boundary[i])
            np.testing.assert_allclose(clipped[i, b], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(clipped[2], TARGET, rtol=1e-5)
    assert np.any(np.abs(clipped[:2] - TARGET) > 0.1)


def test_clipped_return_has_no_gradient():
    total = lambda q, y, b: jnp.sum(dsac_t.clipped_return(q, y, b))  # noqa: E731
    for gradient in jax.grad(total, argnums=(0, 1, 2))(Q, TARGET, 0.5 * MEAN_STD):
        np.testing.assert_array_equal(gradient, 0.0)


@BOTH
def test_far_targets_do_not_blow_up_the_gradient_of_sigma(loss):
    """|C - q| <= 3 sigma-hat, whatever the target, of either sign."""
    for_std = []
    for far in (-1e6, -1e3, 1e3, 1e6):
        target, boundary = np.full(B, far, np.float32), WIDTH * MEAN_STD
        clipped = dsac_t.clipped_return(Q, target, boundary)
        np.testing.assert_allclose(clipped - Q, np.sign(far) * np.broadcast_to(boundary[:, None], (N, B)), rtol=1e-4)
        for_std.append(gradients(loss, target=target, clipped=clipped)[1])
    for gradient in for_std[1:]:
        np.testing.assert_allclose(gradient, for_std[0], rtol=1e-4, atol=1e-5)


# The gradient of eq. 26


def test_gradient_of_the_critics_is_equation_26():
    for_q, for_std = gradients()
    for i in range(N):
        for b in range(B):
            std, distance = STD[i, b], CLIPPED[i, b] - Q[i, b]
            toward_q = (TARGET[b] - Q[i, b]) / (std**2 + 0.1)
            toward_std = (distance**2 - std**2) / (std**3 + 0.1)
            np.testing.assert_allclose(for_q[i, b], -SCALE[i] * toward_q / B, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(for_std[i, b], -SCALE[i] * toward_std / B, rtol=1e-4, atol=1e-6)


def test_gradient_of_the_whole_critic_s_loss_is_equation_26():
    """Nothing leaks through C, its boundary or the scale, computed inside from what is differentiated."""
    target, random = targets()
    boundary = 0.5  # xi, narrow enough that some returns are clipped

    def total(q, std):
        mean_std = dsac_t.running_mean(MEAN_STD, std, 0.3)
        scale = dsac_t.running_mean(SCALE, jnp.square(std), 0.3) + 0.1
        clipped = dsac_t.clipped_return(q, random, boundary * mean_std)
        return dsac_t.critic_loss(q, std, target, clipped, scale, EPSILON)

    mean_std = 0.7 * MEAN_STD + 0.3 * STD.mean(1)
    scale = (0.7 * SCALE + 0.3 * (STD**2).mean(1) + 0.1)[:, None]
    limit = boundary * mean_std[:, None]
    distance = np.clip(random - Q, -limit, limit)
    assert 0 < np.sum(np.abs(distance) < limit * 0.999) < N * B
    for_q, for_std = jax.grad(total, argnums=(0, 1))(Q, STD)
    np.testing.assert_allclose(for_q, -scale * (target - Q) / (STD**2 + 0.1) / B, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(for_std, -scale * (distance**2 - STD**2) / (STD**3 + 0.1) / B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average", [-1.0, None])
@pytest.mark.parametrize("form", ["mean_square", "square_mean"])
def test_with_a_constant_sigma_the_means_learn_as_in_sac(average, form):
    """The factor (w + 0.1) / (sigma^2 + 0.1) is 1, from the first batch on and later."""
    constant = np.array([0.3, 1.0, 7.0], np.float32)  # per critic
    std = np.broadcast_to(constant[:, None], (N, B))
    square = form == "mean_square"
    before = np.full(N, average, np.float32) if average else (constant**2 if square else constant)
    scale = dsac_t.running_mean(before, std**2 if square else std, 0.005)
    scale = scale if square else scale**2
    for_q, _ = gradients(std=std, scale=scale + EPSILON)
    np.testing.assert_allclose(for_q, jax.grad(squared_td_error)(Q, TARGET), rtol=1e-5)
    other, _ = gradients(std=1.1 * std, scale=scale + EPSILON)
    assert np.all(np.abs(other) < np.abs(for_q))


def test_with_a_constant_sigma_and_binary_numbers_it_is_sac_s_gradient_exactly():
    for_q, _ = gradients(std=np.full((N, B), 0.5, np.float32), scale=np.full(N, 0.5, np.float32), epsilon=0.25)
    np.testing.assert_array_equal(for_q, jax.grad(squared_td_error)(Q, TARGET))


@BOTH
def test_losses_have_gradients_for_both_heads_alone(loss):
    def total(q, std, others):
        return loss(q, std, **others)

    others = {"target": TARGET, "clipped": CLIPPED, "scale": SCALE, "epsilon": EPSILON}
    for_q, for_std, for_others = jax.grad(total, argnums=(0, 1, 2))(Q, STD, others)
    assert np.all(np.abs(for_q) > 0) and np.all(np.abs(for_std) > 0)
    del for_others["epsilon"]
    assert set(for_others) == {"target", "clipped", "scale"}
    for gradient in for_others.values():
        np.testing.assert_array_equal(gradient, 0.0)


@BOTH
def test_the_heads_do_not_see_each_other_s_targets(loss):
    """q does not learn from C, and sigma does not learn from y_q."""
    for_q, for_std = gradients(loss)
    other_q, other_std = gradients(loss, clipped=CLIPPED + 1.0)
    np.testing.assert_array_equal(other_q, for_q)
    assert np.all(other_std != for_std)
    other_q, other_std = gradients(loss, target=TARGET + 1.0)
    np.testing.assert_array_equal(other_std, for_std)
    assert np.all(other_q != for_q)


def test_sigma_stays_where_and_only_where_the_error_has_its_size():
    q = np.arange(-8.0, 8.0, dtype=np.float32)[None]  # binary numbers: exact
    std = np.resize(np.array([0.25, 0.5, 1.0, 2.0], np.float32), 16)[None]
    sign = np.resize(np.array([1.0, -1.0, -1.0], np.float32), 16)
    scale, target = np.ones(1, np.float32), np.zeros(16, np.float32)
    for size, direction in [(1.0, 0.0), (0.875, 1.0), (1.125, -1.0), (0.0, 1.0), (3.0, -1.0)]:
        clipped = q + sign * size * std
        _, for_std = gradients(q=q, std=std, target=target, clipped=clipped, scale=scale)
        np.testing.assert_array_equal(np.sign(for_std), direction)


# Scales


def head_gradients(c, xi=WIDTH, scaled=True, epsilon=0.0):
    """Both heads' gradients if returns, with rewards and temperature, are c times as large."""
    next_value = dsac_t.least_value(c * NEXT_Q, c * NEXT_STD, NOISE)
    target, random = targets(reward=c * REWARD, next_value=next_value, alpha=c * ALPHA)
    q, std = c * Q, c * STD
    mean_std = dsac_t.running_mean(c * MEAN_STD, std, 0.2)
    scale = dsac_t.running_mean(c**2 * SCALE, std**2, 0.2) + epsilon if scaled else np.ones(N, np.float32)
    clipped = dsac_t.clipped_return(q, random, xi * mean_std)
    return gradients(q=q, std=std, target=target, clipped=clipped, scale=scale, epsilon=epsilon)


@pytest.mark.parametrize("c", [0.01, 100.0])
@pytest.mark.parametrize("xi", [0.5, WIDTH])
def test_without_epsilon_gradients_scale_with_the_return(c, xi):
    for scaled, factor in [(True, c), (False, 1.0 / c)]:
        for gradient, reference in zip(head_gradients(c, xi, scaled), head_gradients(1.0, xi, scaled), strict=True):
            np.testing.assert_allclose(gradient, factor * reference, rtol=1e-4, atol=1e-5 * factor)


def test_with_epsilon_they_do_not():
    for gradient, reference in zip(head_gradients(0.01, epsilon=0.1), head_gradients(1.0, epsilon=0.1), strict=True):
        assert not np.allclose(gradient, 0.01 * reference, rtol=0.1)


def test_without_clipping_scale_and_expected_target_it_is_dsac_v1():
    """Then and without epsilon the gradient is that of the likelihood of the random target."""
    _, random = targets()
    clipped = dsac_t.clipped_return(Q, random, np.full(N, np.inf, np.float32))
    np.testing.assert_allclose(clipped, np.broadcast_to(random, (N, B)), rtol=1e-5, atol=1e-6)
    actual = gradients(target=random, clipped=clipped, scale=np.ones(N, np.float32), epsilon=0.0)

    def negative_log_likelihood(q, std):
        return -jnp.sum(jnp.mean(jax.scipy.stats.norm.logpdf(random, q, std), axis=1))

    expected = jax.grad(negative_log_likelihood, argnums=(0, 1))(Q, STD)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# The Huber form


def test_huber_loss_equals_numpy_with_its_gradients():
    std = np.array([[0.01, 0.5, 1.0, 2.0, 3.0, 9.0]] * N, np.float32)
    scale = np.array([0.2, 1.0, 20.0], np.float32)
    target, clipped = TARGET + np.array([0, 0, 0, 0, 80, -80], np.float32), np.array(CLIPPED)
    clipped[0, 0] += 70.0
    ratio = np.clip(scale[:, None] / (std**2 + 0.1), 0.1, 10.0)
    assert ratio.min() == np.float32(0.1) and ratio.max() == 10.0 and len(np.unique(ratio)) > 4  # all three cases
    toward_std = (std**2 - huber(Q - clipped)) / (std + 0.1)
    loss = dsac_t.huber_loss(Q, std, target, clipped, scale, EPSILON)
    np.testing.assert_allclose(loss, np.sum(ratio * (huber(Q - target) + std * toward_std)) / B, rtol=1e-4)
    for_q, for_std = gradients(dsac_t.huber_loss, std=std, target=target, clipped=clipped, scale=scale)
    np.testing.assert_allclose(for_q, ratio * np.clip(Q - target, -50.0, 50.0) / B, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(for_std, ratio * toward_std / B, rtol=1e-4, atol=1e-5)


# Running means


def test_running_mean_begins_with_the_first_batch_and_averages_the_others():
    batches = positive(3, N, B)
    average = np.full(N, -1.0, np.float32)
    first = dsac_t.running_mean(average, batches[0], 0.2)
    np.testing.assert_allclose(first, batches[0].mean(1), rtol=1e-6)
    expected, average = batches[0].mean(1), first
    for batch in batches[1:]:
        expected, average = 0.8 * expected + 0.2 * batch.mean(1), dsac_t.running_mean(average, batch, 0.2)
    np.testing.assert_allclose(average, expected, rtol=1e-5)
    np.testing.assert_allclose(dsac_t.running_mean(np.zeros(N), batches[0], 0.2), 0.2 * batches[0].mean(1), rtol=1e-5)


@pytest.mark.parametrize("average", [-1.0, 1.0])
def test_running_mean_has_no_gradient_through_the_batch(average):
    average = np.full(N, average, np.float32)
    gradient = jax.grad(lambda batch: jnp.sum(dsac_t.running_mean(average, batch, 0.2)))(STD)
    np.testing.assert_array_equal(gradient, 0.0)


# Fixed points


def descend(loss, reward, xi=WIDTH, steps=3000, **changes):
    """q and sigma of two critics without inputs after gradient descent: (2,), (2,)."""
    count = len(reward)
    nothing = {"terminated": np.ones(count, bool), "next_value": (np.zeros(count), np.zeros(count))}
    nothing |= {"next_log_prob": np.zeros(count), "alpha": jnp.float32(0.0)}
    target, random = targets(reward=reward, **(nothing | changes))
    epsilon = EPSILON if loss is dsac_t.critic_loss else 0.0  # of the scale

    def total(heads, mean_std, mean_variance):
        q, std = (jnp.broadcast_to(x[:, None], (2, count)) for x in heads)
        mean_std = dsac_t.running_mean(mean_std, std, 0.2)
        mean_variance = dsac_t.running_mean(mean_variance, jnp.square(std), 0.2)
        clipped = dsac_t.clipped_return(q, random, xi * mean_std)
        return loss(q, std, target, clipped, mean_variance + epsilon, EPSILON), (mean_std, mean_variance)

    def step(carry, _):
        heads, averages = carry
        gradient, averages = jax.grad(total, has_aux=True)(heads, *averages)
        return (jax.tree.map(lambda x, g: x - 0.05 * g, heads, gradient), averages), None

    start = (jnp.array([-2.0, 3.0]), jnp.array([0.69, 2.5])), (jnp.full(2, -1.0), jnp.full(2, -1.0))
    (heads, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))(start)
    return heads


@pytest.mark.parametrize(("mean", "deviation"), [(1.5, 0.8), (-3.0, 2.0)])
@pytest.mark.parametrize(
    ("loss", "xi", "variance", "rtol"),
    [
        (dsac_t.critic_loss, WIDTH, 0.994, 2e-3),  # the tails beyond 3 sigma are cut
        (dsac_t.critic_loss, 10.0, 1.0, 2e-3),
        (dsac_t.huber_loss, WIDTH, 0.5, 0.1),  # the tails beyond 3 / sqrt(2) deviations are cut
        (dsac_t.huber_loss, 10.0, 0.5, 2e-3),
    ],
)
def test_bandit_with_gaussian_rewards(mean, deviation, loss, xi, variance, rtol):
    quantiles = jax.scipy.special.ndtri((np.arange(4000, dtype=np.float32) + 0.5) / 4000)
    q, std = descend(loss, np.asarray(mean + deviation * quantiles), xi)
    np.testing.assert_allclose(q, mean, atol=2e-3)
    np.testing.assert_allclose(std**2, variance * deviation**2, rtol=rtol)


@BOTH
def test_a_deterministic_reward_leaves_no_sigma(loss):
    alive = {"terminated": np.zeros(B, bool), "next_value": dsac_t.least_value(NEXT_Q, NEXT_STD, NOISE)}
    q, std = descend(loss, np.full(B, 1.7, np.float32), next_log_prob=NEXT_LOG_PROB, discount=0.0, **alive)
    np.testing.assert_allclose(q, 1.7, atol=1e-3)
    assert np.all(np.abs(std) < 0.02)


# Shapes


@pytest.mark.parametrize("reshape", [lambda x: x[:, None], lambda x: x[:1], lambda x: x[0]])
def test_functions_of_the_next_value_refuse_shapes_that_would_broadcast(reshape):
    mean, sample = dsac_t.least_value(NEXT_Q, NEXT_STD, NOISE)
    for name, value in [
        ("reward", reshape(REWARD)),
        ("terminated", reshape(TERMINATED)),
        ("next_log_prob", reshape(NEXT_LOG_PROB)),
        ("next_value", (reshape(mean), sample)),
        ("next_value", (mean, reshape(sample))),
    ]:
        with pytest.raises(AssertionError):
            targets(**{name: value})
    with pytest.raises(AssertionError):
        dsac_t.least_value(NEXT_Q, NEXT_STD, reshape(NOISE))


@pytest.mark.parametrize("shape", [(B,), (N, 1), (1, B), (N, B, 1), (B, N)])
def test_least_value_refuses_critics_of_another_shape(shape):
    zeros = np.zeros(shape, np.float32)
    for q, std in [(zeros, NEXT_STD), (NEXT_Q, zeros)]:
        with pytest.raises(AssertionError):
            dsac_t.least_value(q, std, NOISE)


@pytest.mark.parametrize(
    "changes",
    [
        {"q": Q[0]},
        {"q": Q[:1]},
        {"q": Q[:, :1]},
        {"q": Q.T},
        {"q": Q[..., None]},
        {"target": TARGET[:, None]},
        {"target": TARGET[:1]},
        {"target": np.broadcast_to(TARGET, (N, B))},
        {"boundary": MEAN_STD[:, None]},
        {"boundary": MEAN_STD[:1]},
        {"boundary": MEAN_STD[0]},
        {"boundary": np.broadcast_to(MEAN_STD[:, None], (N, B))},
    ],
)
def test_clipped_return_refuses_shapes_that_would_broadcast(changes):
    with pytest.raises(AssertionError):
        dsac_t.clipped_return(**({"q": Q, "target": TARGET, "boundary": MEAN_STD} | changes))


@BOTH
@pytest.mark.parametrize(
    "changes",
    [
        {"target": TARGET[:, None]},
        {"target": TARGET[:1]},
        {"target": np.broadcast_to(TARGET, (N, B))},
        {"scale": SCALE[:, None]},
        {"scale": SCALE[:1]},
        {"scale": SCALE[0]},
        {"scale": np.broadcast_to(SCALE[:, None], (N, B))},
    ]
    + [{name: x[index]} for name, x in [("q", Q), ("std", STD), ("clipped", CLIPPED)] for index in (0, np.s_[:1])]
    + [{name: x[:, :1]} for name, x in [("q", Q), ("std", STD), ("clipped", CLIPPED)]]
    + [{name: x.T} for name, x in [("q", Q), ("std", STD), ("clipped", CLIPPED)]],
)
def test_losses_refuse_shapes_that_would_broadcast(loss, changes):
    arguments = {"q": Q, "std": STD, "target": TARGET, "clipped": CLIPPED, "scale": SCALE, "epsilon": EPSILON}
    with pytest.raises(AssertionError):
        loss(**(arguments | changes))


def test_running_mean_refuses_shapes_that_would_broadcast():
    for average, batch in [(MEAN_STD[:, None], STD), (MEAN_STD[:1], STD), (MEAN_STD[0], STD), (MEAN_STD, STD[0])]:
        with pytest.raises(AssertionError):
            dsac_t.running_mean(average, batch, 0.1)
    with pytest.raises(AssertionError):
        dsac_t.running_mean(MEAN_STD, STD[:1], 0.1)
