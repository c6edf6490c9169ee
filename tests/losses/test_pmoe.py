"""PMOE's losses against NumPy, and what must hold of gate and experts whatever the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax.distributions import Normal, NormalMixture
from offpolicy_jax.losses import pmoe, sac

RNG = np.random.default_rng(3)
N, B, K, A = 2, 6, 3, 2
ALPHA = jnp.float32(0.3)


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


LOGITS, Q, LOG_PROB, NOISE = array(B, K), array(N, B, K), array(B, K), array(B, K, A)
BEST = RNG.integers(0, K, B)
EVERYONE = np.broadcast_to(np.arange(K), (B, K))
POLICY = {"logits": LOGITS, "mean": array(B, K, A), "log_std": 0.5 * array(B, K, A) - 0.5}


def weights_of(logits):
    """softmax in float64."""
    w = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return w / w.sum(-1, keepdims=True)


def normal_log_density(u, mean, log_std):
    """Summed over the last axis, in float64."""
    u, mean, log_std = (np.asarray(x, np.float64) for x in (u, mean, log_std))
    return (-0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2.0 * np.pi)).sum(-1)


def mixture_log_density(u, logits, mean, log_std):
    """u (..., A), logits (..., K), mean and log_std (..., K, A) -> (...)."""
    joint = np.log(weights_of(logits)) + normal_log_density(u[..., None, :], mean, log_std)
    return np.logaddexp.reduce(joint, axis=-1)


def samples(policy, noise=NOISE):
    """One reparameterised sample per expert and its own log-density."""
    experts = Normal(policy["mean"], policy["log_std"])
    u = experts.mean + jnp.exp(experts.log_std) * noise
    return u, experts.log_prob(u)


def log_probs(policy, noise=NOISE):
    """Mixture log-densities (B, K) of one sample per expert."""
    u, own = samples(policy, noise)
    everyone = jnp.broadcast_to(jnp.arange(own.shape[1]), own.shape)
    experts = Normal(policy["mean"], policy["log_std"])
    return pmoe.log_prob_of_expert_actions(policy["logits"], experts, u, own, everyone)


def critics(u):
    """Two critics of the actions tanh(u), over the last axis."""
    action = jnp.tanh(u)
    return jnp.stack([jnp.sum(jnp.sin(k * action) - k * action**2, -1) for k in (0.5, 1.5)])


def loss_of_experts(policy, train, log_prob, noise=NOISE):
    """The experts' loss as agents put it together, with expert k's sample and critics of it."""
    u, own = samples(policy, noise)
    experts = Normal(policy["mean"], policy["log_std"])
    trained = jnp.broadcast_to(jnp.arange(own.shape[1]), own.shape)
    if train == "best":
        trained = pmoe.best_expert(critics(u))[:, None]
    u, own = jnp.take_along_axis(u, trained[..., None], 1), jnp.take_along_axis(own, trained, 1)
    if log_prob == "mixture":
        own = pmoe.log_prob_of_expert_actions(policy["logits"], experts, u, own, trained)
    return pmoe.expert_loss(own, critics(u), ALPHA)


# The gate


def test_best_expert_has_the_largest_minimum_over_critics():
    expected = [max(range(K), key=lambda k, b=b: min(Q[i, b, k] for i in range(N))) for b in range(B)]
    np.testing.assert_array_equal(pmoe.best_expert(Q), expected)
    assert np.any(np.asarray(expected) != Q.mean(0).argmax(-1))  # the mean over critics would choose another
    assert np.any(np.asarray(expected) != Q.max(0).argmax(-1))


def test_of_equal_experts_the_first_is_best():
    q = np.float32([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 1.0, 3.0]])
    np.testing.assert_array_equal(pmoe.best_expert(np.stack([q, q + 1.0])), [1, 0, 0])


def test_frequency_loss_equals_numpy():
    w, expected = weights_of(LOGITS), 0.0
    for b in range(B):
        for k in range(K):
            expected += ((k == BEST[b]) - w[b, k]) ** 2 / B  # summed over experts: the public code's mean is 1 / K
    np.testing.assert_allclose(pmoe.frequency_loss(LOGITS, BEST), expected, rtol=1e-5)


def test_frequency_loss_of_masked_samples():
    mask = np.arange(len(BEST)) < 2
    np.testing.assert_allclose(
        pmoe.frequency_loss(LOGITS, BEST, mask), pmoe.frequency_loss(LOGITS[:2], BEST[:2]), rtol=1e-6
    )


def test_gradient_of_the_frequency_loss_is_the_known_one():
    w, v = weights_of(LOGITS), np.eye(K)[BEST]
    expected = 2.0 * w * ((w - v) - (w * (w - v)).sum(-1, keepdims=True)) / B
    np.testing.assert_allclose(jax.grad(pmoe.frequency_loss)(LOGITS, BEST), expected, rtol=1e-4, atol=1e-7)


def test_frequency_loss_has_gradients_for_the_logits_alone():
    def loss(logits, policy, scale):
        return pmoe.frequency_loss(logits, pmoe.best_expert(scale * critics(samples(policy)[0])))

    for_logits, *for_others = jax.grad(loss, argnums=(0, 1, 2))(LOGITS, POLICY, jnp.float32(2.0))
    assert np.all(np.abs(for_logits) > 0)
    for gradient in jax.tree.leaves(for_others):
        np.testing.assert_array_equal(gradient, 0.0)


def test_frequency_loss_descends_to_the_frequency_of_being_best():
    p, steps = np.array([0.15, 0.6, 0.25]), 1000

    def descend(logits, key):
        best = jax.random.choice(key, K, (256,), p=jnp.asarray(p))
        logits -= jax.grad(lambda x: pmoe.frequency_loss(jnp.broadcast_to(x, (256, K)), best))(logits)
        return logits, jax.nn.softmax(logits)

    start = jnp.array([2.0, -1.0, 0.0])
    _, path = jax.lax.scan(descend, start, jax.random.split(jax.random.key(0), steps))
    np.testing.assert_allclose(path[steps // 2 :].mean(0), p, atol=0.01)


def test_score_loss_equals_numpy():
    w, value, expected = weights_of(LOGITS), array(B, K), 0.0
    for b in range(B):
        expected -= np.log(w[b, BEST[b]]) * (value[b, BEST[b]] - w[b] @ value[b]) / B
    np.testing.assert_allclose(pmoe.score_loss(LOGITS, BEST, value), expected, rtol=1e-4)


def test_score_loss_is_unbiased():
    """Weighted by the probabilities of its samples, its gradient is that of -E_{k ~ w}[value_k]."""
    value, w = array(B, K), weights_of(LOGITS)
    exact = jax.grad(lambda x: -jnp.mean(jnp.sum(jax.nn.softmax(x) * value, -1)))(LOGITS)
    each = [jax.grad(pmoe.score_loss)(LOGITS, np.full(B, k), value) for k in range(K)]
    np.testing.assert_allclose(sum(w[:, k, None] * each[k] for k in range(K)), exact, rtol=1e-4, atol=1e-6)
    assert np.any(np.abs(each[0] - exact) > 0.01)  # no single sample has it


def test_score_loss_does_not_care_for_a_constant_and_holds_values_fixed():
    value = array(B, K)
    for_logits, for_value = jax.grad(pmoe.score_loss, argnums=(0, 2))(LOGITS, BEST, value)
    np.testing.assert_array_equal(for_value, 0.0)
    shifted = jax.grad(pmoe.score_loss)(LOGITS, BEST, value + array(B, 1))
    np.testing.assert_allclose(shifted, for_logits, rtol=1e-3, atol=1e-6)


def test_score_loss_ascends_to_the_best_value():
    value = jnp.array([0.0, 1.0, 0.5])

    def descend(logits, key):
        many = jnp.broadcast_to(logits, (64, K))
        expert = jax.random.categorical(key, many)
        values = jnp.broadcast_to(value, many.shape)
        gradient = jax.grad(lambda x: pmoe.score_loss(jnp.broadcast_to(x, many.shape), expert, values))(logits)
        return logits - gradient, None

    end, _ = jax.lax.scan(descend, jnp.zeros(K), jax.random.split(jax.random.key(0), 300))
    assert jax.nn.softmax(end)[1] > 0.9


def test_straight_through_is_one_hot_with_the_gate_s_frequencies():
    logits = np.float32([0.5, -1.0, 1.5])
    for temperature in (0.1, 1.0, 5.0):
        choice = pmoe.straight_through(np.broadcast_to(logits, (20_000, K)), jax.random.key(1), temperature)
        np.testing.assert_allclose(choice, np.eye(K)[np.argmax(choice, -1)], atol=1e-6)
        np.testing.assert_allclose(choice.mean(0), weights_of(logits), atol=0.012)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_straight_through_has_the_gradient_of_the_relaxed_sample(temperature):
    key, c = jax.random.key(4), array(B, K)
    relaxed = weights_of((LOGITS + jax.random.gumbel(key, LOGITS.shape)) / temperature)
    expected = relaxed * (c - (relaxed * c).sum(-1, keepdims=True)) / temperature
    gradient = jax.grad(lambda x: jnp.sum(c * pmoe.straight_through(x, key, temperature)))(LOGITS)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


# The density of experts' samples under the mixture


def test_log_prob_is_that_of_the_mixture():
    u, own = samples(POLICY)
    experts = Normal(POLICY["mean"], POLICY["log_std"])
    for expert in (EVERYONE, BEST[:, None]):  # M = K, M = 1
        taken = np.take_along_axis(np.asarray(u), expert[..., None], 1), np.take_along_axis(np.asarray(own), expert, 1)
        out = pmoe.log_prob_of_expert_actions(LOGITS, experts, *taken, expert)
        each = [mixture_log_density(taken[0][:, m], *POLICY.values()) for m in range(expert.shape[1])]
        np.testing.assert_allclose(out, np.stack(each, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", ["mixture", "component"])
def test_actions_of_experts_and_their_density_equal_numpy(density):
    u, own = samples(POLICY)
    mixture = NormalMixture(*POLICY.values())
    expert = np.stack([BEST, (BEST + 1) % K], axis=1)
    action, log_prob = pmoe.actions_of_experts(mixture, u, own, expert, density)
    for b in range(B):
        for m in range(2):
            taken = np.asarray(u, np.float64)[b, expert[b, m]]
            np.testing.assert_allclose(action[b, m], np.tanh(taken), rtol=1e-5)
            expected = normal_log_density(taken, POLICY["mean"][b, expert[b, m]], POLICY["log_std"][b, expert[b, m]])
            if density == "mixture":
                expected = mixture_log_density(taken, *(x[b] for x in POLICY.values()))
            expected -= np.log(1.0 - np.tanh(taken) ** 2).sum()
            np.testing.assert_allclose(log_prob[b, m], expected, rtol=1e-4, atol=1e-4)


def test_log_prob_is_between_the_largest_joint_and_the_largest_component():
    policy = POLICY | {"logits": 5.0 * LOGITS}  # some experts hardly count
    log_prob, u = np.asarray(log_probs(policy)), np.asarray(samples(policy)[0])
    for m in range(K):
        each = normal_log_density(u[:, m, None], policy["mean"], policy["log_std"])
        joint = np.log(weights_of(policy["logits"])) + each
        assert np.all(log_prob[:, m] >= joint.max(-1) - 1e-4)
        assert np.all(log_prob[:, m] <= each.max(-1) + 1e-4)


@pytest.mark.parametrize("name", ["mean", "log_std"])
@pytest.mark.parametrize("expert", range(K))
def test_log_prob_has_the_gradient_of_its_own_expert(name, expert):
    """By finite differences in float64: the expert's sample moves with its parameters, the others and w stay."""

    def density(x):
        own = {k: v[:, expert].astype(np.float64) for k, v in POLICY.items() if k != "logits"} | {name: x}
        u = own["mean"] + np.exp(own["log_std"]) * NOISE[:, expert]
        moved = {k: np.array(POLICY[k], np.float64) for k in own}
        for k in own:
            moved[k][:, expert] = own[k]
        return mixture_log_density(u, LOGITS, **moved)

    gradient = jax.grad(lambda p: jnp.sum(log_probs(p)[:, expert]))(POLICY)
    x = POLICY[name][:, expert].astype(np.float64)
    for i in range(A):
        step = 1e-5 * np.eye(A)[i]
        expected = (density(x + step) - density(x - step)) / 2e-5
        np.testing.assert_allclose(gradient[name][:, expert, i], expected, rtol=1e-3, atol=1e-4)
    others = np.arange(K) != expert
    np.testing.assert_array_equal(gradient[name][:, others], 0.0)
    np.testing.assert_array_equal(gradient["logits"], 0.0)


def test_identical_experts_are_their_mixture():
    same = {k: np.repeat(POLICY[k][:, :1], K, 1) for k in ("mean", "log_std")}
    _, own = samples(same)
    for logits in (LOGITS, 20.0 * LOGITS, np.zeros_like(LOGITS)):
        np.testing.assert_allclose(log_probs(same | {"logits": logits}), own, rtol=1e-4, atol=1e-5)


# The experts


def test_expert_loss_equals_numpy():
    for m in (1, K):
        expected = 0.0
        for b in range(B):
            expected += sum(0.3 * LOG_PROB[b, k] - min(Q[:, b, k]) for k in range(m)) / B
        loss = pmoe.expert_loss(LOG_PROB[:, :m], Q[..., :m], ALPHA)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_expert_loss_has_no_gradient_through_alpha():
    for_log_prob, for_q, for_alpha = jax.grad(pmoe.expert_loss, argnums=(0, 1, 2))(LOG_PROB, Q, ALPHA)
    np.testing.assert_allclose(for_log_prob, 0.3 / B, rtol=1e-6)
    np.testing.assert_allclose(for_q, -(Q.min(0) == Q).astype(float) / B, rtol=1e-6)
    assert for_alpha == 0.0


@pytest.mark.parametrize("log_prob", ["mixture", "component"])
def test_experts_that_did_not_win_a_state_learn_nothing_in_it(log_prob):
    gradient = jax.grad(loss_of_experts)(POLICY, "best", log_prob)
    won = np.eye(K, dtype=bool)[pmoe.best_expert(critics(samples(POLICY)[0]))]
    assert 1 < np.sum(won.any(0))  # not one for all states
    for name in ("mean", "log_std"):
        np.testing.assert_array_equal(gradient[name][~won], 0.0)
        assert np.all(np.abs(gradient[name][won]) > 0)


@pytest.mark.parametrize("name", ["mean", "log_std"])
def test_with_their_own_densities_all_experts_learn_independently(name):
    before = jax.grad(loss_of_experts)(POLICY, "all", "component")
    assert np.all(np.abs(before[name]) > 0)
    for k in range(K):
        moved = POLICY[name].copy()
        moved[:, np.arange(K) != k] += array(B, K - 1, A)
        after = jax.grad(loss_of_experts)(POLICY | {name: moved}, "all", "component")
        np.testing.assert_allclose(after["mean"][:, k], before["mean"][:, k], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(after["log_std"][:, k], before["log_std"][:, k], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("train", ["best", "all"])
@pytest.mark.parametrize("log_prob", ["mixture", "component"])
def test_expert_loss_does_not_teach_the_gate(train, log_prob):
    gradient = jax.grad(loss_of_experts)(POLICY, train, log_prob)
    np.testing.assert_array_equal(gradient["logits"], 0.0)
    assert np.any(gradient["mean"] != 0.0)


# All together


def test_one_expert_is_sac_bit_for_bit():
    policy, noise = {k: v[:, :1] for k, v in POLICY.items()}, NOISE[:, :1]
    loss, gradient = jax.value_and_grad(pmoe.frequency_loss)(policy["logits"], np.zeros(B, int))
    assert loss == 0.0
    np.testing.assert_array_equal(gradient, 0.0)

    def sac_loss(policy):
        u, own = samples(policy, noise)
        return sac.actor_loss(own[:, 0], critics(u[:, 0]), ALPHA)

    expected, expected_gradient = jax.value_and_grad(sac_loss)(policy)
    for train in ("best", "all"):
        for log_prob in ("mixture", "component"):
            loss, gradient = jax.value_and_grad(loss_of_experts)(policy, train, log_prob, noise)
            assert loss == expected
            jax.tree.map(np.testing.assert_array_equal, gradient, expected_gradient)


def test_the_order_of_experts_does_not_matter():
    order = np.array([2, 0, 1])
    policy, noise = {k: v[:, order] for k, v in POLICY.items()}, NOISE[:, order]
    best, moved = (pmoe.best_expert(critics(samples(p, e)[0])) for p, e in [(POLICY, NOISE), (policy, noise)])
    np.testing.assert_array_equal(order[moved], best)
    losses = [pmoe.frequency_loss(p["logits"], j) for p, j in [(POLICY, best), (policy, moved)]]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(log_probs(policy, noise), log_probs(POLICY)[:, order], rtol=1e-5, atol=1e-6)
    for train in ("best", "all"):
        for log_prob in ("mixture", "component"):
            expected, gradients = jax.value_and_grad(loss_of_experts)(POLICY, train, log_prob)
            loss, moved = jax.value_and_grad(loss_of_experts)(policy, train, log_prob, noise)
            np.testing.assert_allclose(loss, expected, rtol=1e-5)
            for name in moved:
                np.testing.assert_allclose(moved[name], gradients[name][:, order], rtol=1e-4, atol=1e-6)


def test_certain_gates_give_numbers_and_gradients():
    logits = jnp.asarray(50.0 * np.sign(LOGITS))
    policy = POLICY | {"logits": logits}
    key = jax.random.key(0)
    for loss in (
        lambda p: pmoe.frequency_loss(p["logits"], BEST),
        lambda p: pmoe.score_loss(p["logits"], BEST, LOG_PROB),
        lambda p: jnp.sum(LOG_PROB * pmoe.straight_through(p["logits"], key, 0.1)),
        lambda p: jnp.sum(log_probs(p)),
        lambda p: loss_of_experts(p, "best", "mixture"),
        lambda p: loss_of_experts(p, "all", "mixture"),
    ):
        for x in jax.tree.leaves(jax.value_and_grad(loss)(policy)):
            assert np.all(np.isfinite(x))


def test_a_wrong_gate_that_is_certain_hardly_learns():
    """The price of squares: where cross-entropy would push with its full strength, the Brier score is flat."""
    logits = np.float32([[50.0, -50.0, -50.0]])
    assert pmoe.frequency_loss(logits, np.array([1])) == pytest.approx(2.0)
    np.testing.assert_allclose(jax.grad(pmoe.frequency_loss)(logits, np.array([1])), 0.0, atol=1e-6)


@pytest.mark.parametrize("reshape", [lambda x: x[:, None], lambda x: x[:1], lambda x: x[0]])
def test_the_gate_s_losses_refuse_shapes_that_would_broadcast(reshape):
    with pytest.raises(AssertionError):
        pmoe.frequency_loss(LOGITS, reshape(BEST))
    with pytest.raises(AssertionError):
        pmoe.score_loss(LOGITS, reshape(BEST), LOG_PROB)
    with pytest.raises(AssertionError):
        pmoe.score_loss(LOGITS, BEST, reshape(LOG_PROB))
    with pytest.raises(AssertionError):
        pmoe.frequency_loss(LOGITS[0], reshape(BEST))


def test_other_functions_refuse_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        pmoe.best_expert(Q[0])
    with pytest.raises(AssertionError):
        pmoe.straight_through(LOGITS[0], jax.random.key(0), 1.0)
    for log_prob, q, alpha in [
        (LOG_PROB[:, 0], Q, ALPHA),
        (LOG_PROB[:, :1], Q, ALPHA),
        (LOG_PROB[:1], Q, ALPHA),
        (LOG_PROB, Q[0], ALPHA),
        (LOG_PROB, Q[..., :1], ALPHA),
        (LOG_PROB, Q, ALPHA[None]),
    ]:
        with pytest.raises(AssertionError):
            pmoe.expert_loss(log_prob, q, alpha)


@pytest.mark.parametrize("name", ["logits", "mean", "u", "own", "expert"])
@pytest.mark.parametrize("reshape", [lambda x: x[:1], lambda x: x[:, :1], lambda x: x[:, 0], lambda x: x[..., None]])
def test_log_prob_refuses_shapes_that_would_broadcast(name, reshape):
    u, own = samples(POLICY)
    values = {"logits": LOGITS, "mean": POLICY["mean"], "u": u, "own": own, "expert": jnp.asarray(EVERYONE)}
    values[name] = reshape(values[name])
    experts = Normal(values.pop("mean"), reshape(POLICY["log_std"]) if name == "mean" else POLICY["log_std"])
    with pytest.raises(AssertionError):
        pmoe.log_prob_of_expert_actions(values.pop("logits"), experts, **values)
