"""Agents that imitate, on a task so small that the answer is known: the expert's action is 0.5, whatever it sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ailboost, bc, dac, iq_learn, value_dice
from offpolicy_jax.losses import dac as dac_losses
from offpolicy_jax.transition import Transition
from tests import probes
from tests.agents.probing import CONTINUOUS, DISCRETE, assert_close, full_replay, learn, random_experience, start, tiny

SIZES = {"hidden_sizes": (32, 32), "batch_size": 64, "replay_capacity": 1024, "learning_starts": 0}
EXPERT_ACTION = 0.5
KEY = jax.random.key(3)


@functools.cache
def experience():
    """Random behaviour, and demonstrations of the one action."""
    replay = random_experience(probes.ConstantReward())
    zeros = np.zeros((100, 1), np.float32)
    ends = np.zeros(100, bool)
    expert = Transition(zeros, zeros + EXPERT_ACTION, zeros[:, 0], zeros, ends, ends)
    return replay.replace(demonstrations=jax.tree.map(jnp.asarray, expert))


def learned(agent, config, updates):
    state = start(agent, config, probes.ConstantReward().spec, jax.random.key(1))
    return learn(agent, config, state, experience(), jax.random.key(2), updates)


CASES = {
    "bc": (bc, bc.Config(learning_rate=1e-2, hidden_sizes=(32,), batch_size=64), 300, 0.05),
    "iq_learn": (iq_learn, iq_learn.Config(learning_rate=3e-3, actor_learning_rate=3e-3, **SIZES), 600, 0.15),
    "value_dice": (value_dice, value_dice.Config(actor_learning_rate=1e-3, **SIZES), 400, 0.2),
}


@pytest.mark.parametrize("name", CASES)
def test_the_expert_s_action_is_learned(name):
    agent, config, updates, tolerance = CASES[name]
    state = learned(agent, config, updates)
    action = agent.policy(config, state, np.zeros((3, 1), np.float32))
    np.testing.assert_allclose(action, EXPERT_ACTION, atol=tolerance)


@pytest.mark.parametrize("terminated", [False, True])
def test_value_dice_looks_behind_no_end(terminated):
    config = value_dice.Config(gradient_penalty=0.0, **SIZES)
    state = start(value_dice, config, probes.ConstantReward().spec, jax.random.key(1))
    zeros, ends = jnp.zeros((4, 1)), jnp.zeros(4, bool)
    expert = Transition(zeros, zeros, zeros[:, 0], zeros, ends, ends)
    steps = [
        value_dice.gradient_step(
            config, state, expert, Transition(zeros, zeros, zeros[:, 0], later, ends | terminated, ends), KEY
        )[0]
        for later in (zeros, zeros + 5.0)
    ]
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), *((s.nu, s.actor) for s in steps))
    assert all(jax.tree.leaves(same)) is terminated


@pytest.mark.parametrize("agent", [dac, ailboost])
def test_rewards_of_an_adversary_are_greatest_at_the_expert_s_action(agent):
    small = {"discriminator_hidden_sizes": (32, 32), "learning_rate": 3e-3, "gradient_penalty": 0.1}
    small |= {"discriminator_batch_size": 256}
    config = tiny(agent, **small)
    if agent is ailboost:  # one learner, whose data are the whole ring; step 1024 ends its acting
        config = config.replace(learner_steps=1024, training_steps=1024, max_learners=1, discriminator_steps=400)
        state = start(agent, config, probes.ConstantReward().spec, jax.random.key(1))
        state, _ = jax.jit(agent.update)(config, state, experience(), np.int32(1024), jax.random.key(2))
    else:
        state = learned(agent, config, 100)
    actions = np.linspace(-1.0, 1.0, 21, dtype=np.float32)
    batch = Transition(np.zeros((21, 1), np.float32), actions[:, None], *[np.zeros(21)] * 4)
    reward = dac.rewarder(state, lambda d: d)(state.discriminator, batch)
    assert abs(actions[np.argmax(reward)] - EXPERT_ACTION) <= 0.2
    assert reward[0] < reward[10]


def test_the_penalty_is_of_the_slope_between_the_pairs():
    """At a linear D of slope 3 it is 4, wherever the pairs lie."""
    config = dac.Config(discriminator_hidden_sizes=(), gradient_penalty=10.0)
    state = start(dac, config, CONTINUOUS, jax.random.key(0))
    kernel = np.float32([[3.0], [0.0], [0.0], [0.0], [0.0]])
    state = state.replace(discriminator={"params": {"Dense_0": {"kernel": kernel, "bias": np.zeros(1, np.float32)}}})
    replay = full_replay(dac, tiny(dac), CONTINUOUS, start(dac, tiny(dac), CONTINUOUS, jax.random.key(0)))
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 5, 0], replay.storage) for i in (0, 5)]
    _, metrics = dac.discriminator_step(dac_losses.discriminator_loss, config, state, *batches, jax.random.key(1))
    np.testing.assert_allclose(metrics["discriminator/penalty"], 4.0, rtol=1e-5)
    d = [3.0 * b.observation[:, 0] for b in batches]
    np.testing.assert_allclose(metrics["discriminator/loss"], dac_losses.discriminator_loss(*d), rtol=1e-5)
    np.testing.assert_allclose(metrics["discriminator/margin"], np.mean(d[0]) - np.mean(d[1]), rtol=1e-4)


def test_with_the_expert_as_policy_only_the_penalty_gives_rewards_a_slope():
    """Without it D tends to nothing; with it the slope (here that along the observation too) tends to one."""
    replay = experience()
    rows = replay.rows * replay.num_envs
    rng = np.random.default_rng(0)
    action = rng.uniform(-1.0, 1.0, (rows, 1)).astype(np.float32)
    same = replay.storage.replace(action=jnp.asarray(action.reshape(replay.rows, -1, 1)))
    zeros = np.zeros((rows, 1), np.float32)
    expert = Transition(zeros, action, zeros[:, 0], zeros, zeros[:, 0] > 0, zeros[:, 0] > 0)
    replay = replay.replace(storage=same, demonstrations=jax.tree.map(jnp.asarray, expert))
    slopes = []
    for penalty in (0.0, 10.0):
        config = tiny(dac, discriminator_hidden_sizes=(16,), learning_rate=3e-3, gradient_penalty=penalty)
        config = config.replace(discriminator_batch_size=256)
        state = start(dac, config, probes.ConstantReward().spec, jax.random.key(1))
        state = learn(dac, config, state, replay, jax.random.key(2), 400)
        x = np.stack([np.zeros(21), np.linspace(-1.0, 1.0, 21)], axis=1).astype(np.float32)
        slope = jax.grad(lambda x, d=state: jnp.sum(d.network.apply(d.discriminator, x)))(x)
        slopes.append(np.mean(np.abs(slope), axis=0))
    assert slopes[0][1] < 0.3  # along the action; along the observation, which never varies, D is what it was
    assert 0.8 < np.linalg.norm(slopes[1]) < 1.2


def test_behaviour_cloning_is_maximum_likelihood():
    """The frequencies of discrete actions."""
    config = bc.Config(learning_rate=3e-2, hidden_sizes=(), batch_size=256)
    action = np.repeat(np.int32([0, 1, 3]), [60, 30, 10])
    zeros = np.zeros((100, 3), np.float32)
    ends = np.zeros(100, bool)
    expert = jax.tree.map(jnp.asarray, Transition(zeros, action, zeros[:, 0], zeros, ends, ends))
    state = start(bc, config, DISCRETE, jax.random.key(0))
    replay = full_replay(bc, config, DISCRETE, state).replace(demonstrations=expert)
    state = learn(bc, config, state, replay, jax.random.key(1), 200)
    probability = jax.nn.softmax(state.network.apply(state.actor, zeros[:1]).logits[0])
    np.testing.assert_allclose(probability, [0.6, 0.3, 0.0, 0.1], atol=0.06)
    assert bc.policy(config, state, zeros[:2]).tolist() == [0, 0]


def test_behaviour_cloning_learns_nothing_from_the_replay():
    config, spec = bc.Config(hidden_sizes=(8,), batch_size=8), CONTINUOUS
    state = start(bc, config, spec, jax.random.key(0))
    replay = full_replay(bc, config, spec, state)
    other = replay.replace(storage=jax.tree.map(lambda x: x if x.dtype == bool else x + jnp.nan, replay.storage))
    run = jax.jit(bc.update)
    assert_close(*(run(config, state, r, np.int32(0), jax.random.key(0)) for r in (replay, other)))
