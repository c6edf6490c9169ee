"""PMOE on PPO: one expert is PPO, what gate and critic learn from, and the probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import pmoe_ppo, ppo
from offpolicy_jax import environments, parameters
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import pmoe
from offpolicy_jax.training import Settings, train
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_close, assert_same, differ, full_replay, start

ONE = pmoe_ppo.Config(
    hidden_sizes=(8,), rollout_length=16, epochs=1, minibatches=1, learning_rate=1e-2, anneal_steps=0, target_kl=np.inf
)
STEP, KEY = np.int32(64), jax.random.key(2)


@jax.jit
def update(config, state, replay, key=KEY):
    return pmoe_ppo.update(config, state, replay, STEP, key)


@functools.cache
def setup(num_experts=3):
    """Config, a state that has moved from its start, and a full ring of its experience."""
    config = ONE.replace(num_experts=num_experts)
    state = start(pmoe_ppo, config, CONTINUOUS, jax.random.key(0))
    replay = full_replay(pmoe_ppo, config, CONTINUOUS, state)
    state, _ = update(config.replace(max_gradient_norm=np.inf, epochs=5), state, replay)
    return config, state, replay


def test_one_expert_is_ppo():
    """With PPO's weights and no gradient clipping, an update moves policy and value as PPO's does."""
    config, state, replay = setup(1)
    config = config.replace(max_gradient_norm=np.inf, epochs=4)
    same = {f: getattr(config, f) for f in ppo.Config.__dataclass_fields__ if hasattr(config, f)}
    twin = start(ppo, ppo.Config(**same), CONTINUOUS, jax.random.key(0))
    policy = state.parameters["policy"]["params"]
    copied = {"MLP_0": policy["MLP_0"], "Dense_0": policy["Dense_0"], "log_std": policy["log_std"][0]}
    params = {"policy": {"params": copied}, "value": state.parameters["value"]}
    twin = twin.replace(parameters=params, optimizer=parameters.adam_init(params))
    state = state.replace(optimizer=parameters.adam_init(state.parameters))
    mine, metrics = update(config, state, replay)
    expected, ppo_metrics = jax.jit(ppo.update)(ppo.Config(**same), twin, replay, STEP, KEY)
    moved = mine.parameters["policy"]["params"]
    assert_close({k: moved[k] for k in ("MLP_0", "Dense_0")}, {
        k: expected.parameters["policy"]["params"][k] for k in ("MLP_0", "Dense_0")
    }, rtol=1e-3, atol=2e-4)  # fmt: skip
    assert_close(moved["log_std"][0], expected.parameters["policy"]["params"]["log_std"], rtol=1e-3, atol=2e-4)
    assert_close(mine.parameters["value"], expected.parameters["value"], rtol=1e-3, atol=2e-4)
    assert_same(moved["gate"], policy["gate"])
    assert metrics["gate/loss"] == 0.0 and metrics["gate/largest_weight"] == 1.0
    for name in ("actor/loss", "critic/loss", "actor/kl", "actor/steps"):
        np.testing.assert_allclose(metrics[name], ppo_metrics[name], rtol=2e-3, atol=1e-5)


def isolated(**changes):
    """An update with one loss alone: PPO's own weights off (no advantage, as the discount and values are zero)."""
    config, state, replay = setup()
    config = config.replace(**({"value_weight": 0.0, "gate_weight": 0.0, "critic_weight": 0.0} | changes))
    silent = replay.replace(storage=replay.storage.replace(reward=jnp.zeros_like(replay.storage.reward)))
    zero = {"value": jax.tree.map(jnp.zeros_like, state.parameters["value"])}
    params = state.parameters | zero
    state = state.replace(parameters=params, optimizer=parameters.adam_init(params))
    return config, state, silent


def test_without_advantages_and_weights_nothing_moves():
    config, state, replay = isolated()
    assert_same(update(config, state, replay)[0].parameters, state.parameters)


def test_the_frequency_loss_moves_the_gate_alone_to_the_expert_that_q_prefers():
    config, state, replay = isolated(gate_weight=1.0, learning_rate=0.1)
    many = config.replace(epochs=60)
    # Q prefers small actions, and the second expert makes them.
    policy = jax.tree.map(lambda x: x, state.parameters["policy"])
    bias = jnp.array([[0.9, 0.9], [0.0, 0.0], [-0.9, -0.9]]).reshape(-1)
    policy["params"]["Dense_0"] = {"kernel": 0.0 * policy["params"]["Dense_0"]["kernel"], "bias": bias}
    policy["params"]["log_std"] = jnp.full((3, 2), -3.0)
    state = state.replace(parameters=state.parameters | {"policy": policy})
    critic = jax.tree.map(jnp.zeros_like, state.parameters["critic"])["params"]
    critic["StackedDense_0"]["kernel"] = (
        critic["StackedDense_0"]["kernel"].at[0, 3:, :2].set(jnp.array([[3.0, -3.0]] * 2))
    )
    critic["StackedDense_0"]["bias"] = critic["StackedDense_0"]["bias"].at[0, 0, :2].set(-3.0)
    critic["StackedDense_1"]["kernel"] = critic["StackedDense_1"]["kernel"].at[0, :2, 0].set(-1.0)
    state = state.replace(parameters=state.parameters | {"critic": {"params": critic}})
    observation = jnp.zeros((1, 3))
    value = pmoe_ppo._values(state, state.parameters, observation, bias.reshape(1, 3, 2))
    assert int(pmoe.best_expert(value)[0]) == 1
    out, metrics = update(many, state, replay)
    before, after = state.parameters["policy"]["params"], out.parameters["policy"]["params"]
    for name in ("MLP_0", "Dense_0", "log_std"):
        assert_same(before[name], after[name])
    assert_same(out.parameters["critic"], state.parameters["critic"])
    weights = jax.nn.softmax(out.policy_network.apply(out.parameters["policy"], observation).logits)[0]
    assert weights[1] > 0.9 and metrics["gate/loss"] > 0.0


def test_the_critic_is_regressed_on_the_value_targets():
    config, state, replay = setup()
    config = config.replace(
        critic_weight=1.0, epochs=400, learning_rate=2e-2, value_weight=0.0, gate_weight=0.0, clip=0.0
    )
    value = lambda o: state.value_network.apply(state.parameters["value"], o)  # noqa: E731
    data = ppo.rollouts(replay, value, config.discount, config.gae_lambda)
    apply = lambda s: s.critic_network.apply(  # noqa: E731
        s.parameters["critic"], data.transitions.observation, data.transitions.action
    )[0]
    out, _ = update(config, state, replay)
    error = lambda s: float(jnp.mean(jnp.square(apply(s) - data.target)))  # noqa: E731
    assert error(out) < 0.2 * error(state)
    _, first = update(config.replace(epochs=1), state, replay)
    np.testing.assert_allclose(first["critic/q_loss"], 0.5 * error(state), rtol=1e-3)


def test_ratios_start_at_one_and_the_update_stops_at_its_target_kl():
    config, state, replay = setup()
    _, metrics = update(config, state, replay)
    np.testing.assert_allclose([metrics["actor/kl"], metrics["actor/clip_fraction"]], 0.0, atol=1e-5)
    many = config.replace(epochs=10, learning_rate=5e-2)
    assert update(many, state, replay)[1]["actor/steps"] == 10.0
    assert update(many.replace(target_kl=1e-3), state, replay)[1]["actor/steps"] < 10.0


def test_the_order_of_experts_does_not_matter_to_the_density():
    _, state, replay = setup()
    policy = state.policy_network.apply(state.parameters["policy"], replay.storage.observation[:, 0])
    order = np.array([2, 0, 1])
    turned = policy.replace(
        logits=policy.logits[:, order], mean=policy.mean[:, order], log_std=policy.log_std[:, order]
    )
    sample = replay.storage.extras["sample"][:, 0]
    np.testing.assert_allclose(policy.log_prob(sample), turned.log_prob(sample), rtol=1e-5)


def test_rows_that_hold_nothing_do_not_count():
    config, state, replay = setup()
    data = jax.tree.map(lambda x: x[:8], replay.storage)
    example = jax.tree.map(lambda x: x[0, 0], data)
    small = ring.add(ring.init(32, example, 2), data)
    changed = small.replace(storage=jax.tree.map(lambda x: x.at[8:].set(jnp.ones_like(x[8:])), small.storage))
    assert_same(*(update(config, state, r)[0].parameters for r in (small, changed)))
    assert differ(update(config, state, replay)[0].parameters, update(config, state, small)[0].parameters)


def test_discrete_actions_are_refused_in_one_line():
    with pytest.raises(UserError, match="--agent=ppo") as error:
        pmoe_ppo.init(ONE, DISCRETE, KEY)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_learns_which_action_fits_the_observation():
    environment = probes.ObservationAction(discrete=False)
    environments.register("probe/fits", lambda num_envs: environment)
    config = pmoe_ppo.Config(hidden_sizes=(32,), rollout_length=64, minibatches=4, learning_rate=3e-3)
    settings = Settings("probe/fits", steps=20_480, seeds=2, num_envs=4, eval_every=20_480, progress=False)
    result = train(pmoe_ppo, settings, config)
    np.testing.assert_allclose(list(result.summary["final_return"].values()), 1.0)
