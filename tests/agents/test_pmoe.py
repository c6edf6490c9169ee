"""PMOE: one expert is SAC, one gradient step against a reference, what gate and experts learn from, and probes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from agents import pmoe, sac
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.training import in_graph
from tests import probes
from tests.agents.probing import (
    CONTINUOUS,
    DISCRETE,
    assert_close,
    assert_same,
    differ,
    full_replay,
    learn,
    random_experience,
    start,
    tiny,
)

K, A = 3, CONTINUOUS.action_size
TRAIN = pytest.mark.parametrize("train_experts", ["best", "all"])
LOG_PROB = pytest.mark.parametrize("log_prob", ["mixture", "component"])
KINDS = [
    ("frequency", "best", "mixture"),
    ("frequency", "best", "component"),
    ("frequency", "all", "mixture"),
    ("frequency", "all", "component"),
    ("score", "best", "mixture"),
    ("score", "all", "component"),
    ("gumbel", "best", "mixture"),
    ("gumbel", "best", "component"),
]
FAST = (KINDS[0], KINDS[3], KINDS[4], KINDS[7])  # each of the values at least once
EVERY_KIND = pytest.mark.parametrize(
    ("gate_gradient", "train_experts", "log_prob"),
    [kind if kind in FAST else pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS],
)
SEPARATE_GATE = pytest.mark.parametrize(("gate_gradient", "train_experts", "log_prob"), KINDS[:6])


@functools.partial(jax.jit, static_argnums=0)
def gradient_step(agent, config, state, batch, key):
    return agent.gradient_step(config, state, batch, key)


@jax.jit
def update(config, state, replay, key):
    return pmoe.update(config, state, replay, jnp.int32(100), key)


def random_gate(state, scale=1.0):
    """The state with a gate that depends on the observation: it starts with equal weights."""
    gate = state.actor["params"]["gate"]
    keys = jax.random.split(jax.random.key(20), 2)
    gate = {"kernel": scale * jax.random.normal(keys[0], gate["kernel"].shape), "bias": 0.5 * gate["bias"] + 0.1}
    return state.replace(actor={"params": {**state.actor["params"], "gate": gate}})


def setup(**changes):
    """A config, a state with a random gate and some steps old, and a batch."""
    config = tiny(pmoe, **({"learning_rate": 1e-2, "tau": 0.1, "num_experts": K} | changes))
    state = random_gate(start(pmoe, config, CONTINUOUS, jax.random.key(0)))
    replay = full_replay(pmoe, config, CONTINUOUS, state)
    for i in range(2):
        state, _ = gradient_step(
            pmoe, config, state, ring.sample(replay, jax.random.key(10 + i), 16), jax.random.key(i)
        )
    return config, state, ring.sample(replay, jax.random.key(5), 16)


def parts(state):
    """The parameters of the gate, and those of the experts."""
    params = dict(state.actor["params"])
    gate = {k: params.pop(k) for k in list(params) if k.startswith("gate")}
    return gate, params


# One expert


def with_gate(actor):
    return {"params": {**actor["params"], "gate": {"kernel": jnp.zeros((3, 1)), "bias": jnp.zeros(1)}}}


def pair(**changes):
    """SAC, and PMOE with one expert, which has SAC's parameters."""
    config, other = tiny(sac, learning_rate=1e-2, tau=0.1), tiny(pmoe, learning_rate=1e-2, tau=0.1, num_experts=1)
    gaussian = start(sac, config, CONTINUOUS, jax.random.key(0))
    mixture = start(pmoe, other, CONTINUOUS, jax.random.key(1))
    mixture = mixture.replace(
        actor=with_gate(gaussian.actor), critics=gaussian.critics, target_critics=gaussian.target_critics
    )
    return (config, gaussian), (other.replace(**changes), mixture)


@TRAIN
@LOG_PROB
def test_one_expert_is_sac_bit_for_bit(train_experts, log_prob):
    """Operation by operation; compiled as a whole, the two programs are fused and rounded differently."""
    (config, gaussian), (other, mixture) = pair(train_experts=train_experts, log_prob=log_prob)
    replay = full_replay(sac, config, CONTINUOUS, gaussian)
    gate = parts(mixture)[0]
    compiled = mixture
    for i in range(3):
        batch, key = ring.sample(replay, jax.random.key(10 + i), 16), jax.random.key(i)
        gaussian, expected = sac.gradient_step(config, gaussian, batch, key)
        mixture, metrics = pmoe.gradient_step(other, mixture, batch, key)
        for name in ("critics", "target_critics", "log_alpha", "critic_optimizer", "temperature_optimizer"):
            assert_same(getattr(mixture, name), getattr(gaussian, name))
        assert_same(parts(mixture), (gate, gaussian.actor["params"]))
        assert_same({k: metrics[k] for k in expected}, expected)
        assert metrics["gate/loss"] == metrics["gate/entropy"] == 0.0
        assert metrics["gate/largest_mean_weight"] == 1.0
        compiled, _ = gradient_step(pmoe, other, compiled, batch, key)
    assert_close(parts(compiled), parts(mixture), rtol=1e-4, atol=1e-6)
    assert_close(compiled.critics, mixture.critics, rtol=1e-4, atol=1e-6)


def test_one_expert_acts_as_sac():
    """With the noise of the same key: the mixture splits its key into the gate's and the experts'."""
    (config, gaussian), (other, mixture) = pair()
    observation, key, step = np.random.default_rng(0).normal(size=(50, 3)), jax.random.key(3), jnp.int32(100)
    np.testing.assert_allclose(
        pmoe.policy(other, mixture, observation), sac.policy(config, gaussian, observation), atol=1e-6
    )
    action, extras = pmoe.act(other, mixture, observation, step, key)
    expert_key = jax.random.split(jax.random.split(key)[0])[1]
    expected = gaussian.policy_network.apply(gaussian.actor, observation).sample(expert_key)
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert extras == {}
    config, other = config.replace(learning_starts=101), other.replace(learning_starts=101)
    random = [
        f(c, s, observation, step, key)[0] for f, c, s in [(sac.act, config, gaussian), (pmoe.act, other, mixture)]
    ]
    assert_same(*random)


# One gradient step


def reference_step(config, state, batch, key):
    """The same step from the equations, without the library's losses, distributions and optimiser."""
    next_key, actor_key = jax.random.split(key)
    alpha = jnp.exp(state.log_alpha)
    optimizer = optax.adam(config.learning_rate)

    def step(loss, params, optimizer_state):
        updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
        return optax.apply_updates(params, updates), optimizer_state

    def normal(u, mean, std):
        return jnp.sum(jax.scipy.stats.norm.logpdf(u, mean, std), -1)

    def jacobian(u):
        return jnp.sum(jnp.log(1.0 - jnp.tanh(u) ** 2), -1)

    def samples(actor, observation, key):
        """Logits, and means, deviations and a sample of every expert, (B, K, A)."""
        policy = state.policy_network.apply(actor, observation).pre_tanh
        std = jnp.exp(policy.log_std)
        return policy.logits, policy.mean, std, policy.mean + std * jax.random.normal(key, std.shape)

    def log_probs(logits, mean, std, u):
        """Of the sample of each expert, (B, K); in the mixture's, w and other experts are constants."""
        each = normal(u[:, :, None], mean[:, None], std[:, None])  # sample of expert k under expert j
        fixed = normal(u[:, :, None], *(jax.lax.stop_gradient(x)[:, None] for x in (mean, std)))
        each = jnp.where(jnp.eye(u.shape[1], dtype=bool), each, fixed)
        if config.log_prob == "component":
            return jnp.diagonal(each, axis1=1, axis2=2) - jacobian(u)
        w = jax.lax.stop_gradient(jax.nn.softmax(logits))[:, None]
        return jax.nn.logsumexp(each, axis=-1, b=w) - jacobian(u)

    def smallest(critics, observation, u):
        """min_i Q_i of the sample of each expert, (B, K)."""
        each = [state.critic_network.apply(critics, observation, jnp.tanh(u[:, k])) for k in range(u.shape[1])]
        return jnp.stack([q.min(0) for q in each], 1)

    def of(expert, x):
        return jnp.sum(jax.nn.one_hot(expert, x.shape[1]) * x, 1)

    logits, mean, std, u = samples(state.actor, batch.next_observation, next_key)
    expert = jax.random.categorical(jax.random.fold_in(next_key, 1), logits)
    soft = smallest(state.target_critics, batch.next_observation, u) - alpha * log_probs(logits, mean, std, u)
    reward = config.reward_scale * batch.reward
    if config.standardize_rewards:
        reward = 10.0 * (reward - reward.mean()) / (reward.std() + 1e-6)
    target = reward + config.discount * (1.0 - batch.terminated) * of(expert, soft)

    def critic_loss(params):
        q = state.critic_network.apply(params, batch.observation, batch.action)
        return 0.5 * jnp.sum(jnp.mean((q - target) ** 2, 1))

    critics, critic_optimizer = step(critic_loss, state.critics, state.critic_optimizer)

    def actor_loss(actor):
        logits, mean, std, u = samples(actor, batch.observation, actor_key)
        w, gate_key = jax.nn.softmax(logits), jax.random.fold_in(actor_key, 1)
        if config.gate_gradient == "gumbel":
            relaxed = jax.nn.softmax((logits + jax.random.gumbel(gate_key, w.shape)) / config.gumbel_temperature)
            hard = jax.nn.one_hot(relaxed.argmax(1), K)
            choice = relaxed + jax.lax.stop_gradient(hard - relaxed)
            own = jnp.sum(choice * normal(u, mean, std), 1)
            u = jnp.sum(choice[..., None] * u, 1)
            if config.log_prob == "mixture":
                own = jax.nn.logsumexp(normal(u[:, None], mean, std), axis=-1, b=w)
            log_prob = own - jacobian(u)
            return jnp.mean(alpha * log_prob - smallest(critics, batch.observation, u[:, None])[:, 0]), log_prob

        log_prob, q = log_probs(logits, mean, std, u), smallest(critics, batch.observation, u)
        if config.gate_gradient == "frequency":
            chosen = q.argmax(1)
            gate_loss = jnp.mean(jnp.sum((jax.nn.one_hot(chosen, K) - w) ** 2, 1))
        else:
            chosen = jax.random.categorical(gate_key, logits)
            value = q - alpha * log_prob
            advantage = jax.lax.stop_gradient(of(chosen, value) - jnp.sum(w * value, 1))
            gate_loss = -jnp.mean(of(chosen, jnp.log(w)) * advantage)
        each = alpha * log_prob - q
        if config.train_experts == "best":
            return jnp.mean(of(chosen, each)) + config.gate_loss_scale * gate_loss, of(chosen, log_prob)
        return jnp.mean(jnp.sum(each, 1)) + config.gate_loss_scale * gate_loss, jnp.sum(w * log_prob, 1)

    actor, actor_optimizer = step(lambda p: actor_loss(p)[0], state.actor, state.actor_optimizer)
    entropy = -jnp.mean(actor_loss(state.actor)[1])
    log_alpha, temperature_optimizer = step(
        lambda x: jnp.exp(x) * (entropy + A), state.log_alpha, state.temperature_optimizer
    )
    return state.replace(
        actor=actor,
        critics=critics,
        target_critics=jax.tree.map(lambda t, q: 0.9 * t + 0.1 * q, state.target_critics, critics),
        log_alpha=log_alpha,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        temperature_optimizer=temperature_optimizer,
    )


@EVERY_KIND
def test_gradient_step_is_critics_policy_temperature_targets(gate_gradient, train_experts, log_prob):
    config, state, batch = setup(gate_gradient=gate_gradient, train_experts=train_experts, log_prob=log_prob)
    config = config.replace(discount=0.9, reward_scale=2.0, gate_loss_scale=0.7, gumbel_temperature=0.8)
    expected = jax.jit(reference_step)(config, state, batch, jax.random.key(6))
    out, metrics = gradient_step(pmoe, config, state, batch, jax.random.key(6))
    assert_close(out, expected)
    assert differ(parts(out)[0], parts(state)[0])
    assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
    np.testing.assert_allclose(metrics["temperature/alpha"], np.exp(state.log_alpha), rtol=1e-5)
    weights = jax.nn.softmax(state.policy_network.apply(state.actor, batch.observation).pre_tanh.logits)
    np.testing.assert_allclose(metrics["gate/entropy"], -np.mean(np.sum(weights * np.log(weights), 1)), rtol=1e-4)
    np.testing.assert_allclose(metrics["gate/largest_mean_weight"], weights.mean(0).max(), rtol=1e-4)


def test_standardized_rewards_are_ten_deviations_from_the_batch_s_mean():
    config, state, batch = setup()
    reward = np.asarray(batch.reward, np.float64)
    scaled = batch.replace(reward=jnp.float32(10.0 * (reward - reward.mean()) / (reward.std() + 1e-6)))
    plain, shifted = (batch.replace(reward=batch.reward + x) for x in (0.0, 3.0))
    expected, key = gradient_step(pmoe, config, state, scaled, jax.random.key(6))[0], jax.random.key(6)
    config = config.replace(standardize_rewards=True)
    assert_close(gradient_step(pmoe, config, state, plain, key)[0], expected)
    assert_close(gradient_step(pmoe, config, state, shifted, key)[0], expected)  # a bonus for staying alive is gone
    config = config.replace(standardize_rewards=False)
    assert differ(gradient_step(pmoe, config, state, plain, key)[0].critics, expected.critics)


def test_a_truncated_step_bootstraps_and_a_terminated_one_does_not():
    config, state, batch = setup()
    no, yes = jnp.zeros(16, bool), jnp.ones(16, bool)
    going_on, truncated, terminated = (
        gradient_step(pmoe, config, state, batch.replace(terminated=a, truncated=b), jax.random.key(6))[0]
        for a, b in [(no, no), (no, yes), (yes, no)]
    )
    assert_same(going_on, truncated)
    assert differ(going_on.critics, terminated.critics)


# What the gate and the experts learn from


def equal_critics(**changes):
    """A fresh state whose critics are zero and stay so: expert 0, the first of equals, wins in every state."""
    config, _, batch = setup(discount=0.0, **changes)
    state = random_gate(start(pmoe, config, CONTINUOUS, jax.random.key(0)))
    state = state.replace(critics=jax.tree.map(jnp.zeros_like, state.critics))
    return config, state, batch.replace(reward=jnp.zeros_like(batch.reward))


@LOG_PROB
def test_only_the_best_expert_learns_or_all_do(log_prob):
    for train_experts, moved in [("best", [True, False, False]), ("all", [True, True, True])]:
        config, state, batch = equal_critics(log_prob=log_prob, train_experts=train_experts)
        out, _ = gradient_step(pmoe, config, state, batch, jax.random.key(6))
        assert_same(out.critics, state.critics)
        for k in range(K):
            own = [
                jax.tree.map(lambda x, k=k: x[..., 2 * A * k : 2 * A * (k + 1)], parts(s)[1]["Dense_0"])
                for s in (out, state)
            ]
            assert differ(*own) == moved[k]
        logits = [s.policy_network.apply(s.actor, batch.observation).pre_tanh.logits for s in (state, out)]
        before, after = (jax.nn.softmax(x).mean(0) for x in logits)
        assert after[0] > before[0]  # the gate goes to the winner


@SEPARATE_GATE
def test_the_gate_learns_from_its_own_loss_alone(gate_gradient, train_experts, log_prob):
    config, _, batch = setup(gate_gradient=gate_gradient, train_experts=train_experts, log_prob=log_prob)
    state = random_gate(start(pmoe, config, CONTINUOUS, jax.random.key(0)))
    out, _ = gradient_step(pmoe, config.replace(gate_loss_scale=0.0), state, batch, jax.random.key(6))
    assert_same(parts(out)[0], parts(state)[0])
    assert differ(parts(out)[1], parts(state)[1])
    # And the experts do not learn from it.
    other, _ = gradient_step(pmoe, config.replace(gate_loss_scale=5.0), state, batch, jax.random.key(6))
    assert differ(parts(other)[0], parts(state)[0])
    assert_close(parts(other)[1], parts(out)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("gate_gradient", "gate_hidden_sizes"), [("frequency", ()), ("frequency", (4,)), ("score", ()), ("gumbel", ())]
)
def test_every_way_to_teach_the_gate_moves_it_from_its_start(gate_gradient, gate_hidden_sizes):
    config, _, batch = setup(gate_gradient=gate_gradient, gate_hidden_sizes=gate_hidden_sizes)
    before = out = start(pmoe, config, CONTINUOUS, jax.random.key(0))
    for i in range(2):  # the last layer starts at zero, and lets no gradient through to the others
        out, metrics = gradient_step(pmoe, config, out, batch, jax.random.key(i))
        assert all(x.shape == () and np.isfinite(x) for x in metrics.values())
    for layer, start_of_it in zip(jax.tree.leaves(parts(out)[0]), jax.tree.leaves(parts(before)[0]), strict=True):
        assert np.all(np.isfinite(layer))
        assert differ(layer, start_of_it)


def test_without_a_learning_rate_only_the_targets_move():
    config, state, batch = setup()
    out, _ = gradient_step(pmoe, config.replace(learning_rate=0.0), state, batch, jax.random.key(2))
    assert_same([out.actor, out.critics, out.log_alpha], [state.actor, state.critics, state.log_alpha])
    expected = jax.tree.map(lambda t, q: 0.9 * t + 0.1 * q, state.target_critics, state.critics)
    assert differ(out.target_critics, state.target_critics)
    assert_close(out.target_critics, expected, rtol=1e-4)


@pytest.mark.parametrize(("changes", "steps"), [({"rollout_length": 3}, 12), ({"gradient_steps": 2}, 2)])
def test_number_of_gradient_steps(changes, steps):
    config = tiny(pmoe, **changes)
    state = start(pmoe, config, CONTINUOUS, jax.random.key(0))
    replay = full_replay(pmoe, config, CONTINUOUS, state, num_envs=4)
    out, _ = update(config, state, replay, jax.random.key(2))
    for optimizer in (out.actor_optimizer, out.critic_optimizer, out.temperature_optimizer):
        assert int(optimizer[0].count) == steps


def test_a_temperature_that_is_not_learned_stays():
    config, state, batch = setup(learn_temperature=False, initial_temperature=0.2)
    out, metrics = gradient_step(pmoe, config, state, batch, jax.random.key(2))
    np.testing.assert_allclose([np.exp(out.log_alpha), metrics["temperature/alpha"]], 0.2, rtol=1e-6)
    assert differ(out.actor, state.actor)


# Acting


def test_greedy_actions_are_of_the_expert_that_the_gate_or_the_critics_prefer():
    config, state, _ = setup()
    state = random_gate(state, 5.0)
    observation = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    mixture = state.policy_network.apply(state.actor, observation).pre_tanh
    means = np.tanh(mixture.mean)
    q = [state.critic_network.apply(state.critics, observation, means[:, k]).min(0) for k in range(K)]
    chosen = {"gate": np.argmax(mixture.logits, 1), "critic": np.argmax(q, 0)}
    for greedy, expert in chosen.items():
        action = pmoe.policy(config.replace(greedy=greedy), state, observation)
        np.testing.assert_allclose(action, means[np.arange(40), expert], rtol=1e-4, atol=1e-5)
        assert len(np.unique(expert)) > 1
    assert np.any(chosen["gate"] != chosen["critic"])


def test_actions_are_of_experts_with_the_gate_s_frequencies():
    config = tiny(pmoe, num_experts=K)
    state = start(pmoe, config, CONTINUOUS, jax.random.key(0))
    weights, means = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.0, 1.0])
    head = np.stack([np.repeat([mean, -6.0], A) for mean in means]).reshape(-1)  # hardly any noise
    params = jax.tree.map(jnp.zeros_like, state.actor["params"])
    params["Dense_0"] = {**params["Dense_0"], "bias": jnp.float32(head)}
    params["gate"] = {**params["gate"], "bias": jnp.float32(np.log(weights))}
    act = jax.jit(functools.partial(pmoe.act, config))
    action, _ = act(state.replace(actor={"params": params}), np.zeros((20_000, 3)), jnp.int32(0), jax.random.key(1))
    expert = np.argmin(np.abs(np.arctanh(action)[..., None] - means), -1)
    np.testing.assert_array_equal(expert[:, 0], expert[:, 1])  # one expert for all of an action
    np.testing.assert_allclose(np.bincount(expert[:, 0]) / 20_000, weights, atol=0.012)


def test_warm_up_is_uniform_whatever_the_state():
    config = tiny(pmoe, learning_starts=50)
    old, new = (start(pmoe, config, CONTINUOUS, jax.random.key(k)) for k in (0, 1))
    observation, key = np.full((4000, 3), 30.0, np.float32), jax.random.key(3)
    act = jax.jit(functools.partial(pmoe.act, config))
    for step, uniform in [(0, True), (49, True), (50, False)]:
        actions = np.asarray(act(old, observation, np.int32(step), key)[0])
        assert uniform == (not differ(actions, act(new, observation, np.int32(step), key)[0]))
        if uniform:
            np.testing.assert_allclose(np.histogram(actions, 4, (-1.0, 1.0))[0] / 8000, 0.25, atol=0.03)


def test_discrete_actions_are_refused_in_one_line_that_names_another_agent():
    with pytest.raises(UserError, match=r"--agent=sac_discrete$") as error:
        pmoe.init(tiny(pmoe), DISCRETE, jax.random.key(0))
    assert "\n" not in str(error.value)
    assert DISCRETE.id in str(error.value)


# Probes: environments whose values are known


def probe_config(**changes):
    sizes = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_capacity": 1024, "learning_starts": 0}
    values = {"learning_rate": 5e-3, "tau": 0.05, "discount": 0.9, "initial_temperature": 1e-6, "num_experts": 2}
    return pmoe.Config(**sizes, **(values | changes), learn_temperature=False, gradient_steps=1)


def learned(probe, updates, seed=0, **changes):
    environment, config = probe(), probe_config(**changes)
    state = start(pmoe, config, environment.spec, jax.random.key(seed))
    return learn(pmoe, config, state, random_experience(environment), jax.random.key(seed + 1), updates)


def values(state, observations):
    """Q of every critic at a few actions for observations (B,): (actions, N, B)."""
    observations = jnp.asarray(observations, jnp.float32)[:, None]
    each = [
        state.critic_network.apply(state.critics, observations, jnp.full_like(observations, a)) for a in (-0.9, 0.9)
    ]
    return np.stack(each)


def greedy(state, observations, **changes):
    return np.asarray(pmoe.policy(probe_config(**changes), state, jnp.float32(observations)[:, None]))[:, 0]


def test_probe_a_time_limit_is_no_end_of_the_task():
    state = learned(probes.ConstantReward, 2500, learning_rate=1e-2)
    np.testing.assert_allclose(values(state, [0.0]), 10.0, atol=0.4)


def test_probe_a_later_reward_is_discounted():
    q = values(learned(probes.DelayedReward, 1000), [0.0, 1.0])
    np.testing.assert_allclose(q, np.broadcast_to([0.9, 1.0], q.shape), atol=0.06)


def test_probe_the_best_action_is_found():
    state = learned(probes.ActionReward, 1500)
    for chosen in ("gate", "critic"):
        np.testing.assert_allclose(greedy(state, [0.0], greedy=chosen), 0.5, atol=0.1)


def test_probe_the_best_action_depends_on_the_observation():
    state = learned(probes.ObservationAction, 1000)
    for chosen in ("gate", "critic"):
        np.testing.assert_array_equal(greedy(state, [-1.0, 1.0], greedy=chosen) > 0, [False, True])


def test_probe_a_temperature_pays_for_entropy():
    """Where the reward does not depend on the action, uniform actions are best, and the value counts their entropy."""
    alpha, discount = 0.1, 0.9
    state = learned(probes.ConstantReward, 2500, learning_rate=1e-2, initial_temperature=alpha)
    expected = (1.0 + discount * alpha * np.log(2.0)) / (1.0 - discount)
    np.testing.assert_allclose(values(state, [0.0]), expected, atol=0.4)


@dataclasses.dataclass(frozen=True)
class Bimodal(probes.OneStep):
    """One step. Reward: minus the squared distance to the nearer one of the actions -0.7 and 0.7. Value: 0."""

    def step(self, state, action):
        reward = -jnp.minimum((action[0] - 0.7) ** 2, (action[0] + 0.7) ** 2)
        return probes._advance(self, state, 1.0, reward, terminated=True)


def means_and_weights(state):
    mixture = state.policy_network.apply(state.actor, jnp.zeros((1, 1))).pre_tanh
    return np.tanh(mixture.mean[0, :, 0]), np.asarray(jax.nn.softmax(mixture.logits[0]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_probe_with_two_best_actions_the_gate_settles_on_one(seed):
    """Wide experts straddle both for long, as SAC does; one of them breaks the symmetry, and the gate prefers it."""
    state = learned(Bimodal, 10_000, seed)
    means, weights = means_and_weights(state)
    assert np.abs(np.abs(means[weights.argmax()]) - 0.7) < 0.15
    assert weights.max() > 0.8
    for chosen in ("gate", "critic"):
        np.testing.assert_allclose(np.abs(greedy(state, [0.0], greedy=chosen)), 0.7, atol=0.15)


@TRAIN
def test_probe_with_two_best_actions_experts_that_start_apart_keep_both(train_experts):
    environment, config = Bimodal(), probe_config(train_experts=train_experts)
    state = start(pmoe, config, environment.spec, jax.random.key(0))
    params = state.actor["params"]
    head = {**params["Dense_0"], "bias": jnp.array([-0.3, -1.5, 0.3, -1.5])}  # means and log standard deviations
    state = state.replace(actor={"params": {**params, "Dense_0": head}})
    state = learn(pmoe, config, state, random_experience(environment), jax.random.key(1), 1500)
    means, weights = means_and_weights(state)
    np.testing.assert_allclose(np.sort(means), [-0.7, 0.7], atol=0.15)
    assert weights.min() > 0.2  # they are equally often the best


def test_in_the_training_loop():
    """Acting, storing and learning together."""
    loop = in_graph.Loop(pmoe, probes.ActionReward(), probe_config(initial_temperature=1e-3), num_lanes=1, num_envs=4)
    carry = loop.advance(loop.start(jax.random.split(jax.random.key(0), 1), np.array([0])), 4 * 1000, lambda: False)
    state = jax.tree.map(lambda x: x[0], carry.learner.agent)
    np.testing.assert_allclose(greedy(state, [0.0]), 0.5, atol=0.1)
    assert int(carry.learner.totals.diverged_at[0]) == -1
