"""AILBoost: rounds, snapshots, weights, rewards."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ailboost, dac
from offpolicy_jax import replay as ring
from offpolicy_jax.errors import UserError
from offpolicy_jax.losses import ailboost as losses
from offpolicy_jax.training import in_graph
from tests import probes
from tests.agents.probing import CONTINUOUS, assert_close, assert_same, demonstrations, differ, full_replay, start, tiny

W, N, M, KEPT = 12, 8, 4, 3  # warm-up, learner's, training steps, learners kept
PERIOD = N + M
CONFIG = tiny(ailboost, learning_starts=W, learner_steps=N, training_steps=M, max_learners=KEPT, discriminator_steps=2)


@functools.cache
def begun():
    state = start(ailboost, CONFIG, CONTINUOUS, jax.random.key(0))
    return state, full_replay(ailboost, CONFIG, CONTINUOUS, state, num_envs=1)


UPDATE = jax.jit(ailboost.update)


def update(state, replay, step, config=CONFIG, key=0):
    return UPDATE(config, state, replay, np.int32(step), jax.random.key(key))


def phase(step):
    """What happens after `step` steps, in words of the paper."""
    since = step - W
    if since <= 0:
        return "wait"
    within = (since - 1) % PERIOD + 1
    return "act" if within < N else "discriminate" if within == N else "train"


@pytest.mark.parametrize("step", range(W, W + 2 * PERIOD + N))
def test_each_step_of_a_round_changes_what_it_should(step):
    state, replay = begun()
    out, _ = update(state, replay, step)
    assert differ(out.learner, state.learner) == (phase(step) == "train")
    assert differ(out.discriminator, state.discriminator) == (phase(step) == "discriminate")
    if phase(step) == "discriminate":
        assert int(out.optimizer[0].count) == int(state.optimizer[0].count) + 2


def test_interactions_of_the_warm_up_of_learners_and_of_training_count():
    """W, then n of acting and m of training for each learner: 5 000 + 1 000 T + 1 000 T in the paper."""
    state, replay = begun()
    ends = [W, W + N, W + N + M, W + 2 * N + M, W + 2 * N + 2 * M]
    counts = [int(update(state, replay, step)[0].count) for end in ends for step in (end, end + 1)]
    assert counts == [0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_rows_are_drawn_by_their_learners_weights():
    """Age, then row: chi-square of 40 000 draws over five learners of four rows each, the oldest standing for more."""
    count, kept, rows, draws = 7, 5, 4, 40_000
    example = jax.tree.map(lambda x: x[0], demonstrations(CONTINUOUS))
    ring_ = ring.init(kept * rows, example)
    filled = jax.tree.map(lambda x: jnp.broadcast_to(x, (kept * rows, 1, *x.shape)), example)
    number = jnp.roll(jnp.arange(kept * rows), (count - kept) * rows)  # rank by age: the ring holds learners 2 to 6
    filled = dataclasses.replace(filled, reward=number[:, None].astype(jnp.float32))
    position = jnp.int32(count * rows % (kept * rows))
    ring_ = dataclasses.replace(ring_, storage=filled, size=jnp.int32(kept * rows), position=position)
    uniform = 1.0 - jax.random.uniform(jax.random.key(0), (draws,))
    ages = losses.draw_ages(uniform, kept, count, 0.3)
    drawn = ring.sample_sources(ring_, jax.random.key(1), count - 1 - ages, rows).reward
    weights = np.repeat(np.asarray(losses.learner_weights(kept, count, 0.3))[::-1], rows) / rows
    assert np.isclose(weights.sum(), 1.0)
    observed = np.bincount(np.asarray(drawn).astype(int), minlength=kept * rows)
    assert np.sum((observed - draws * weights) ** 2 / (draws * weights)) < 43.8  # 99.9 % of chi-square, 19 degrees


def rolled(rounds, seeds=1, num_envs=1, config=CONFIG):
    """A run of that many learners in a probe: its carry, with the states after every update of the first seed."""
    environment = probes.ConstantReward(limit=5)
    loop = in_graph.Loop(
        ailboost,
        environment,
        config,
        num_lanes=seeds,
        num_envs=num_envs,
        demonstrations=demonstrations(environment.spec),
    )
    keys = jax.random.split(jax.random.key(3), seeds)
    carry = loop.start(keys, np.arange(seeds))
    states = []
    for _ in range((W + rounds * PERIOD) // num_envs):
        carry = loop.advance(carry, num_envs, bool)
        states.append(jax.tree.map(lambda x: np.array(x[0]), carry.learner.agent))
    return carry, states


@pytest.mark.parametrize("rounds", [2, 5])
def test_snapshots_are_the_policies_that_acted_and_never_change(rounds):
    """Five learners, three kept: the others have been overwritten."""
    _, states = rolled(rounds)
    for t in range(rounds):
        acting = states[W + t * PERIOD - 1].learner.actor  # when learner t begins
        slot = t % (KEPT + 1)
        for step in range(W + t * PERIOD - 1, len(states)):
            newest = min(-(-(step + 1 - W + M) // PERIOD), rounds)  # the learner whose training or acting is under way
            if newest - t > KEPT:
                break
            assert_same(jax.tree.map(lambda x, slot=slot: x[slot], states[step].snapshots), acting)
    assert differ(states[-1].learner.actor, states[W].learner.actor)


def test_lanes_in_turn_are_as_they_are_together(monkeypatch):
    """With rings that forget, rewards that are relabelled, draws by learner and phases under a switch."""
    carries, turns, run_in_turn = [], [], in_graph.run_in_turn
    monkeypatch.setattr(in_graph, "run_in_turn", lambda *args: turns.append(True) or run_in_turn(*args))
    monkeypatch.setattr(in_graph.seed_axis, "num_cores", lambda: 1)
    for sizes in ((0, 2**60), (2**60, 2**60)):
        monkeypatch.setattr(in_graph, "IN_TURN_BYTES", sizes)
        turns.clear()
        carries.append(rolled(4, seeds=2)[0])
        assert bool(turns) == (not sizes[0])
    one, other = ((x.learner.agent, x.learner.totals, x.learner.replay, x.learner.step) for x in carries)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_a_warm_up_that_fills_the_ring_is_forgotten():
    config = CONFIG.replace(learning_starts=16, max_learners=1)
    assert config.replay_capacity == 16
    replay = full_replay(ailboost, config, CONTINUOUS, begun()[0], num_envs=1)
    kept = ailboost.retain(config, replay, jnp.int32(16))
    assert (int(kept.size), int(kept.position)) == (0, 0)
    for step in (0, 15, 17, 24, 27, 29):  # only when a learner begins
        assert int(ailboost.retain(config, replay, jnp.int32(step)).position) == int(replay.position)
    later = ailboost.retain(config, replay, jnp.int32(16 + PERIOD))
    assert int(later.position) == (int(replay.position) - M) % 16


@pytest.mark.parametrize(("rounds", "num_envs"), [(1, 1), (3, 1), (3, 2), (6, 1)])
def test_the_replay_holds_each_learner_s_own_data_in_its_block(rounds, num_envs):
    """Every action is drawn again from the snapshot, with the key of its step."""
    carry, states = rolled(rounds, num_envs=num_envs)
    learner = carry.learner
    storage = jax.tree.map(lambda x: np.asarray(x[0]), learner.replay.storage)
    rows, block = storage.reward.shape[0], N // num_envs
    assert rows * num_envs == CONFIG.replay_capacity == N * (KEPT + 1)
    for t in range(max(0, rounds - KEPT), rounds):
        state = states[(W + t * PERIOD) // num_envs - 1]
        for j in range(block):
            row = (t * block + j) % rows
            key = jax.random.fold_in(jax.tree.map(lambda x: x[0], learner.keys).act, W + t * PERIOD + j * num_envs)
            observation = storage.observation[row]
            action, _ = ailboost.act(CONFIG, state, observation, jnp.int32(10**6), key)
            np.testing.assert_allclose(storage.action[row], action, rtol=1e-4, atol=1e-5)
    held = min(rounds * N + M, rows * num_envs) if rounds < KEPT + 1 else rows * num_envs
    assert int(learner.replay.size) * num_envs == held  # the warm-up and all but the last training are forgotten


def nan_but(replay, blocks):
    """The replay with NaN in all rows outside these blocks of a learner's length."""
    keep = np.isin(np.arange(replay.rows) // N, blocks)[:, None]
    bad = lambda x: jnp.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan) if x.dtype == jnp.float32 else x  # noqa: E731
    return replay.replace(storage=jax.tree.map(bad, replay.storage))


@pytest.mark.parametrize(
    ("alpha", "learners", "blocks"),
    [(1.0, 3, [2]), (0.0, 3, [0]), (0.5, 2, [0, 1]), (1.0, 6, [1]), (0.0, 6, [3]), (0.5, 6, [3, 0, 1])],
)
def test_the_discriminator_sees_learners_by_their_weights_alone(alpha, learners, blocks):
    """alpha = 1: the newest; alpha = 0: the first that is kept. Block 5 % 4 = 1 is the sixth learner's."""
    state, replay = begun()
    step = W + (learners - 1) * PERIOD + N
    out, metrics = update(state, nan_but(replay, blocks), step, CONFIG.replace(alpha=alpha))
    assert differ(out.discriminator, state.discriminator)
    assert all(np.isfinite(x) for x in metrics.values())
    _, metrics = update(
        state, nan_but(replay, [next(b for b in range(4) if b not in blocks)]), step, CONFIG.replace(alpha=alpha)
    )
    assert not np.isfinite(metrics["discriminator/loss"])


TRAIN = W + N + 1


@pytest.mark.parametrize("agent", [ailboost, dac])
def test_the_learner_never_sees_the_environment_s_rewards(agent):
    config = CONFIG if agent is ailboost else tiny(dac)
    state = start(agent, config, CONTINUOUS, jax.random.key(0))
    replay = full_replay(agent, config, CONTINUOUS, state, num_envs=1)
    other = replay.replace(storage=replay.storage.replace(reward=jnp.full_like(replay.storage.reward, jnp.nan)))
    run = jax.jit(agent.update)
    out = [run(config, state, r, np.int32(TRAIN), jax.random.key(1)) for r in (replay, other)]
    assert_same(*out)
    assert differ(out[0][0].learner, state.learner)


def test_rewards_are_those_of_the_newest_discriminator():
    """The same batch, another discriminator: other rewards, so another update; its own parameters do not move."""
    state, replay = begun()
    other = state.replace(discriminator=jax.tree.map(lambda x: x + 0.1, state.discriminator))
    first, second = (update(s, replay, TRAIN)[0] for s in (state, other))
    assert differ(first.learner.critics, second.learner.critics)
    assert_same(second.discriminator, other.discriminator)


def test_a_bounded_discriminator_gives_bounded_rewards():
    state = start(ailboost, CONFIG.replace(bounded=True), CONTINUOUS, jax.random.key(0))
    assert state.network.bounded and not begun()[0].network.bounded
    x = 1e3 * np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    assert np.max(np.abs(state.network.apply(state.discriminator, x))) <= 1.0
    assert np.max(np.abs(begun()[0].network.apply(state.discriminator, x))) > 1.0


def test_metrics_last_until_the_next_update_of_their_kind():
    state, replay = begun()
    trained, metrics = update(state, replay, TRAIN)
    assert metrics["critic/loss"] != 0.0
    _, later = update(trained, replay, W + PERIOD + 3)
    assert_same(later, metrics)
    _, later = update(trained, replay, W + PERIOD + N)
    assert later["critic/loss"] == metrics["critic/loss"]
    np.testing.assert_allclose(later["discriminator/kl_bound"], 1.0 - later["discriminator/loss"], rtol=1e-6)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("pmoe", "mdpo")]


@pytest.mark.parametrize("learner", ["sac", "dsac_t", *OTHERS])
def test_any_off_policy_learner_learns_as_it_would_alone(learner):
    """Its own update, on the same replay seen through D, with the count of its own steps."""
    config = CONFIG.replace(learner=learner)
    state = start(ailboost, config, CONTINUOUS, jax.random.key(0))
    _, replay = begun()
    out, _ = jax.jit(ailboost.update)(config, state, replay, np.int32(TRAIN), jax.random.key(5))
    agent, learner_config = dac.learner_of(config)
    seen = ring.relabel(replay, lambda p, t: ailboost.rewarder(state, lambda d: d)(p, t), state.discriminator)
    key = jax.random.split(jax.random.key(5))[1]
    alone, _ = jax.jit(agent.update)(learner_config, state.learner, seen, np.int32(W + 1), key)
    assert_close(out.learner, alone)
    assert differ(alone, state.learner)
    actions = ailboost.policy(config, out, np.zeros((2, 3), np.float32))
    assert_close(actions, agent.policy(learner_config, out.learner, np.zeros((2, 3), np.float32)))


def distinct(count):
    """A state with that many learners whose greedy actions tell their slots apart."""
    state, _ = begun()
    head = lambda i, x: jnp.zeros_like(x).at[..., :2].set(0.1 * (i + 1)) if x.shape == (4,) else jnp.zeros_like(x)  # noqa: E731
    actors = [jax.tree.map(functools.partial(head, i), state.learner.actor) for i in range(KEPT + 1)]
    return state.replace(snapshots=jax.tree.map(lambda *x: jnp.stack(x), *actors), count=jnp.int32(count))


@pytest.mark.parametrize(
    ("count", "shares"),
    [(1, [1, 0, 0, 0]), (2, [0.7, 0.3, 0, 0]), (3, [0.49, 0.21, 0.3, 0]), (5, [0.3, 0, 0.49, 0.21])],
)
def test_the_mixture_follows_each_learner_as_often_as_its_weight(count, shares):
    observation = np.zeros((1_000, 3), np.float32)
    actions = jax.jit(ailboost.mixture_policy)(CONFIG.replace(alpha=0.3), distinct(count), observation)
    slots = np.round(np.arctanh(np.asarray(actions[:, 0])) / 0.1).astype(int) - 1
    np.testing.assert_allclose(np.bincount(slots, minlength=4) / 1_000, shares, atol=2e-3)  # stratified: +-1 row


def test_an_episode_of_the_mixture_is_one_learner_s():
    """Whatever it observes on the way."""
    state = distinct(3)
    rng = np.random.default_rng(0)
    act = jax.jit(ailboost.mixture_policy)
    paths = [act(CONFIG, state, rng.normal(size=(20, 3)).astype(np.float32)) for _ in range(3)]
    assert_close(paths[0], paths[1])
    assert_close(paths[0], paths[2])


def test_before_the_first_learner_the_mixture_is_the_policy():
    state, _ = begun()
    observation = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert_close(ailboost.mixture_policy(CONFIG, state, observation), ailboost.policy(CONFIG, state, observation))


@pytest.mark.parametrize("name", ["learner_steps", "training_steps", "learning_starts"])
def test_lengths_that_no_update_ends_on_are_refused(name):
    state, replay = begun()
    config = CONFIG.replace(rollout_length=2, **{name: 9})
    with pytest.raises(UserError, match=rf"config\.{name} must be a multiple of the 2 steps") as error:
        jax.eval_shape(ailboost.update, config, state, replay, np.int32(0), jax.random.key(0))
    assert "\n" not in str(error.value)


def test_seeds_have_learners_of_their_own():
    carry, _ = rolled(2, seeds=2)
    assert carry.learner.agent.count.tolist() == [2, 2]
    assert differ(*(jax.tree.map(lambda x, i=i: x[i], carry.learner.agent.snapshots) for i in range(2)))
