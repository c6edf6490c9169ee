"""The value bias against a brute-force sum, sampling errors against exact ones, and where both must vanish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import diagnostics
from offpolicy_jax.diagnostics import value_bias
from offpolicy_jax.networks import NormalPolicy
from offpolicy_jax.transition import ArraySpec

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


def tabular_data(seed, steps=400, states=5, actions=4):
    """Logits (S, A), and states and actions (N,) drawn from their softmax."""
    keys = jax.random.split(jax.random.key(seed), 3)
    logits = jax.random.normal(keys[0], (states, actions))
    state = jax.random.randint(keys[1], (steps,), 0, states)
    return logits, state, jax.random.categorical(keys[2], logits[state])


def counts_of(state, action, shape):
    return jnp.zeros(shape).at[state, action].add(1.0)


def test_the_tabular_sampling_error_is_the_kl_of_frequencies():
    log_probs = np.log([[0.5, 0.5], [0.25, 0.75], [0.1, 0.9]])
    counts = np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])  # the last state was never seen
    expected = (3 * np.log(0.75 / 0.5) + np.log(0.25 / 0.5) + 2 * np.log(1.0 / 0.75)) / 6
    np.testing.assert_allclose(diagnostics.tabular_sampling_error(counts, log_probs), expected, rtol=1e-6)
    assert diagnostics.tabular_sampling_error(np.zeros((3, 2)), log_probs) == 0.0
    exact = 100 * np.exp(log_probs)
    np.testing.assert_allclose(diagnostics.tabular_sampling_error(exact, log_probs), 0.0, atol=1e-6)


def test_on_policy_data_have_the_sampling_error_of_wilks():
    """(A - 1) / 2N for each of S states."""

    def error(seed):
        logits, state, action = tabular_data(seed, 2_000)
        return diagnostics.tabular_sampling_error(counts_of(state, action, logits.shape), jax.nn.log_softmax(logits))

    errors = jax.jit(jax.vmap(error))(np.arange(400))
    np.testing.assert_allclose(errors.mean(), 5 * 3 / 4_000, rtol=0.1)
    assert errors.min() >= 0.0


def test_the_fit_finds_the_exact_error_of_a_table():
    logits, state, action = tabular_data(0)
    mask = jnp.arange(400) < 300
    log_prob = lambda logits: jax.nn.log_softmax(logits)[state, action]  # noqa: E731
    exact = diagnostics.tabular_sampling_error(
        counts_of(state[:300], action[:300], logits.shape), jax.nn.log_softmax(logits)
    )
    np.testing.assert_allclose(diagnostics.sampling_error(log_prob, logits, mask), exact, rtol=1e-3)
    nothing = diagnostics.sampling_error(log_prob, logits, mask, iterations=0)
    np.testing.assert_array_equal(nothing, 0.0)


def test_the_fit_finds_the_least_squares_of_a_gaussian_policy():
    """With the torso fixed, the likeliest mean is linear regression on its features."""
    network = NormalPolicy((ArraySpec((3,), np.dtype(np.float32)),), (8,), 2)
    keys = jax.random.split(jax.random.key(1), 3)
    observation = jax.random.normal(keys[0], (1_000, 3))
    params = network.init(keys[1], observation)
    policy = network.apply(params, observation)
    action = policy.sample(keys[2])
    free, put_back = diagnostics.last_layers(params)
    assert set(free) == {"Dense_0", "log_std"}
    jax.tree.map(np.testing.assert_array_equal, put_back(free), params)
    error = diagnostics.sampling_error(
        lambda free: network.apply(put_back(free), observation).log_prob(action), free, jnp.ones(1_000, bool)
    )
    _, intermediates = network.apply(params, observation, capture_intermediates=True)
    features = np.asarray(intermediates["intermediates"]["MLP_0"]["__call__"][0], np.float64)
    features = np.concatenate([features, np.ones((1_000, 1))], axis=1)
    residual = action - features @ np.linalg.lstsq(features, np.asarray(action, np.float64), rcond=None)[0]
    best = -0.5 * np.sum(np.log(2 * np.pi * np.e * np.mean(residual**2, axis=0)))
    np.testing.assert_allclose(error, best - policy.log_prob(action).mean(), rtol=5e-3)


def test_seeds_are_fitted_on_their_own():
    log_prob = lambda logits, state, action: jax.nn.log_softmax(logits)[state, action]  # noqa: E731

    def error(logits, state, action):
        fit = lambda logits: log_prob(logits, state, action)  # noqa: E731
        return diagnostics.sampling_error(fit, logits, jnp.ones(400, bool))

    data = jax.vmap(tabular_data)(np.arange(3))
    together = jax.jit(jax.vmap(error))(*data)
    alone = [jax.jit(error)(*jax.tree.map(lambda x, i=i: x[i], data)) for i in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-3)


def test_effective_rank_counts_directions():
    basis = np.linalg.qr(RNG.normal(size=(50, 4)))[0].astype(np.float32)
    srank, smooth = diagnostics.effective_rank(jnp.asarray(basis))
    assert int(srank) == 4
    np.testing.assert_allclose(smooth, 4.0, rtol=1e-4)
    srank, smooth = diagnostics.effective_rank(jnp.asarray(basis * np.array([1.0, 1.0, 1e-3, 0.0], np.float32)))
    assert int(srank) == 2 and 2.0 < smooth < 2.02
    assert [float(x) for x in diagnostics.effective_rank(jnp.zeros((5, 3)))] == [0.0, 0.0]


def test_dormant_units_are_those_far_below_the_layer():
    features = np.ones((10, 4), np.float32) * np.array([1.0, -3.0, 0.01, 0.0], np.float32)
    np.testing.assert_allclose(diagnostics.dormant_units(features), 0.5)
    np.testing.assert_allclose(diagnostics.dormant_units(features, 0.0), 0.25)


def test_the_linear_probe_explains_what_is_linear():
    features = RNG.normal(size=(400, 3)).astype(np.float32)
    targets = np.column_stack([features @ [1.0, -2.0, 0.5] + 7.0, RNG.normal(size=400)]).astype(np.float32)
    error = diagnostics.linear_probe_error(features, targets)
    assert error[0] < 1e-4 and 0.95 < error[1] <= 1.0
    np.testing.assert_allclose(diagnostics.linear_probe_error(features + 100.0, targets), error, atol=1e-3)


def test_a_probe_with_many_features_is_judged_on_rows_that_it_was_not_fitted_on():
    features, targets = RNG.normal(size=(60, 30)).astype(np.float32), RNG.normal(size=(60, 1)).astype(np.float32)
    held_out = np.arange(60) < 20
    assert diagnostics.linear_probe_error(features, targets) < 0.8
    error = diagnostics.linear_probe_error(features, targets, 1e-6, held_out)
    w = np.linalg.lstsq(*(x[20:] - x[20:].mean(0) for x in (features, targets)), rcond=None)[0]
    left = targets[:20] - targets[20:].mean(0) - (features[:20] - features[20:].mean(0)) @ w
    expected = np.sum(left**2) / np.sum((targets[:20] - targets[:20].mean()) ** 2)
    np.testing.assert_allclose(error, [expected], rtol=0.02)
    assert expected > 1.0


def test_statistics_of_features_are_those_of_their_parts():
    features = np.array([[3.0, 4.0, 0.0], [6.0, 8.0, 0.0]], np.float32)
    found = diagnostics.feature_statistics(features)
    expected = {"srank": 1, "effective_rank": 1.0, "dormant": 1 / 3, "norm": 7.5}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_features_that_are_dead_or_constant_explain_nothing():
    targets = RNG.normal(size=(20, 2)).astype(np.float32)
    for features in (np.zeros((20, 3), np.float32), np.ones((20, 3), np.float32)):
        np.testing.assert_allclose(diagnostics.linear_probe_error(jnp.asarray(features), targets), 1.0, rtol=1e-5)


def test_collapsed_features_span_no_plane():
    plane = jnp.asarray(np.eye(5, 2), jnp.float32)
    line = plane[:, :1] * jnp.array([1.0, 2.0])
    np.testing.assert_allclose(diagnostics.principal_cosines(line, plane), [1.0, 0.0], atol=1e-6)


def test_principal_cosines_compare_spans_and_not_bases():
    a = RNG.normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_allclose(
        diagnostics.principal_cosines(a, a @ RNG.normal(size=(3, 3)).astype(np.float32)), 1, atol=1e-5
    )
    axes = np.eye(20, dtype=np.float32)
    tilted = np.column_stack([axes[0], np.cos(0.3) * axes[1] + np.sin(0.3) * axes[5], axes[6]])
    np.testing.assert_allclose(diagnostics.principal_cosines(axes[:, :3], tilted), [1.0, np.cos(0.3), 0.0], atol=1e-6)
