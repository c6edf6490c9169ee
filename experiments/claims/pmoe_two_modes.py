"""PMOE, two equally good modes: do experts specialise where a single Gaussian cannot?

Claim (Ren et al. 2021, arXiv 2104.09122): a probabilistic mixture of experts, its gate trained by the frequency loss,
learns distinguishable experts, explores more and returns more than a unimodal policy; and it beats the Gumbel-softmax
and the score-function gradient for the gate.

Fixed before running. Task: one-step episodes; the observation s is uniform on [-1, 1], the action has two dimensions,
and the reward is exp(-d^2 / (2 x 0.15^2)) with d the distance to the nearer of two best actions, +m and -m, where
m = (0.5 + 0.25 s, 0.5 + 0.25 s). Arms: SAC; PMOE with two experts and the frequency loss, the score function and
Gumbel-softmax. 10 000 steps, 10 seeds. Held equal: seeds, steps, hidden layers 64 x 64, batches of 128, learning rate
1e-3, learned temperature with target entropy -2. Metrics, from 64 samples of the trained policy in each of 100
contexts: coverage, which is twice the smaller share of samples within 0.3 of either mode (1: both modes alike, 0: one
of them never); the mean reward of samples; and specialisation, how much the share of samples within 0.3 of the upper
mode differs between the two experts, sampled by themselves (1: each has a mode of its own; SAC counts as 0). Confirmed
if all three of PMOE exceed those of SAC, and coverage and reward those of each other gate gradient. Not held equal:
under Gumbel-softmax log pi is differentiated whole, under the others with respect to the acting expert.

    python experiments/claims/pmoe_two_modes.py      (ten minutes on two cores)
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Arm, Claim, effect, main, run

import agents
from offpolicy_jax import environments
from offpolicy_jax.environments import Step
from offpolicy_jax.training import Settings
from offpolicy_jax.training.plots import comparison
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec

WIDTH, NEAR, CONTEXTS, SAMPLES = 0.15, 0.3, 100, 64
SIZES = {"hidden_sizes": (64, 64), "batch_size": 128, "learning_starts": 500, "learning_rate": 1e-3}
PMOE = SIZES | {"num_experts": 2}
CLAIM = Claim(
    name="pmoe_two_modes",
    claim="on a task with two equally good actions the experts of PMOE specialise, a unimodal policy does not, and the "
    "frequency loss trains the gate better than Gumbel-softmax or the score function",
    paper="Ren et al. 2021, arXiv 2104.09122, abstract",
    paper_says="better than unimodal SAC and than both gradients on six MuJoCo tasks (no verified table)",
    metric="coverage of both modes and mean reward of samples of the trained policy; specialisation of its experts",
    held_equal="seeds, 10 000 steps, 64 x 64 hidden units, batch 128, learning rate 1e-3, target entropy -2",
    arms={
        "SAC": Arm("sac", SIZES),
        "PMOE, frequency loss": Arm("pmoe", PMOE),
        "PMOE, score function": Arm("pmoe", PMOE | {"gate_gradient": "score"}),
        "PMOE, Gumbel-softmax": Arm("pmoe", PMOE | {"gate_gradient": "gumbel"}),
    },
    seeds=10,
)


@dataclasses.dataclass(frozen=True)
class TwoModes:
    """The task above, in-graph. The state is the key and the observation."""

    spec = EnvironmentSpec(
        "claims/TwoModes", ArraySpec((1,), np.dtype(np.float32)), ArraySpec((2,), np.dtype(np.float32)), 1
    )

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        now, later = jax.random.split(key)
        observation = jax.random.uniform(now, (1,), minval=-1.0, maxval=1.0)
        return (later, observation), observation

    def step(self, state: Any, action: jax.Array) -> tuple[Any, Step]:
        key, observation = state
        reward = jnp.exp(-0.5 * jnp.square(jnp.min(distances(observation, action)) / WIDTH))
        state, following = self.reset(key)
        return state, Step(following, observation, reward, jnp.ones((), bool), jnp.zeros((), bool))


def distances(observation: Any, action: Any) -> jax.Array:
    """Distance of actions (..., 2) from both modes of observations (..., 1): (..., 2)."""
    mode = 0.5 + 0.25 * observation
    return jnp.stack([jnp.linalg.norm(action - mode, axis=-1), jnp.linalg.norm(action + mode, axis=-1)], axis=-1)


environments.register("claims/TwoModes", lambda num_envs: TwoModes())


def coverage_and_reward(agent: Any, config: Any, states: Any) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of both modes and mean reward of samples, per seed (S,)."""
    contexts = jnp.linspace(-1.0, 1.0, CONTEXTS)[:, None]
    observation = jnp.repeat(contexts, SAMPLES, axis=0)
    act = functools.partial(agent.act, config)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(states)[0]))
    action, _ = jax.jit(jax.vmap(act, in_axes=(0, None, None, 0)))(states, observation, np.int32(10**6), keys)
    apart = distances(observation, action)  # (S, CONTEXTS * SAMPLES, 2)
    shares = jnp.mean((apart < NEAR).reshape(len(keys), CONTEXTS, SAMPLES, 2), axis=2)
    reward = jnp.exp(-0.5 * jnp.square(jnp.min(apart, axis=-1) / WIDTH))
    coverage = jnp.mean(2.0 * jnp.min(shares, axis=-1), axis=1)
    return np.asarray(coverage, np.float64), np.asarray(jnp.mean(reward, axis=1), np.float64)


def specialisation(agent: str, states: Any) -> np.ndarray:
    """Mean over contexts of |P(near the upper mode | expert 1) - P(the same | expert 2)|, per seed (S,)."""
    seeds = len(jax.tree.leaves(states)[0])
    if agent == "sac":
        return np.zeros(seeds)
    observation = jnp.repeat(jnp.linspace(-1.0, 1.0, CONTEXTS)[:, None], SAMPLES, axis=0)

    def shares(state: Any, key: jax.Array) -> jax.Array:
        experts = state.policy_network.apply(state.actor, observation).pre_tanh.experts
        action = jnp.tanh(experts.sample(key))  # (CONTEXTS * SAMPLES, 2 experts, 2)
        near = distances(observation[:, None], action)[..., 0] < NEAR
        return jnp.mean(near.reshape(CONTEXTS, SAMPLES, 2), axis=1)

    each = jax.jit(jax.vmap(shares))(states, jax.random.split(jax.random.key(1), seeds))
    return np.asarray(jnp.mean(jnp.abs(each[..., 0] - each[..., 1]), axis=1), np.float64)


def measure(seeds, quick, root):
    """Train every arm; curves are of the greedy reward."""
    steps = 1_000 if quick else 10_000
    settings = Settings(
        "claims/TwoModes", steps=steps, seeds=seeds, eval_every=steps // 20, eval_episodes=200, progress=False
    )
    coverage, reward, apart, curves = {}, {}, {}, {}
    for label, arm in CLAIM.arms.items():
        result = run(CLAIM, label, settings, root, states=True)
        coverage[label] = reward[label] = apart[label] = np.full(seeds, np.nan)  # as it stays if a seed diverged
        if result.states is not None:
            coverage[label], reward[label] = coverage_and_reward(agents.load(arm.agent), arm.build(), result.states)
            apart[label] = specialisation(arm.agent, result.states)
        curves[label] = (np.unique(result.table["step"]), result.table["return"].reshape(-1, seeds))
    measurements = {
        label: {
            "coverage": coverage[label].round(3).tolist(),
            "reward_of_samples": reward[label].round(3).tolist(),
            "specialisation": apart[label].round(3).tolist(),
            "greedy_reward": curves[label][1][-1].round(3).tolist(),
        }
        for label in CLAIM.arms
    }
    others = [label for label in CLAIM.arms if label != "PMOE, frequency loss"]
    effects = [
        effect(f"{name} of PMOE, frequency loss, minus {other}", values["PMOE, frequency loss"], values[other])
        for name, values in (("coverage", coverage), ("reward", reward))
        for other in others
    ]
    effects.append(effect("specialisation of PMOE, frequency loss", apart["PMOE, frequency loss"], apart["SAC"]))

    def draw(path):
        comparison(
            path,
            {"two equally good actions": curves},
            xlabel="Environment steps per seed",
            ylabel="Greedy reward (best: 1)",
            caption="Mean reward of 200 greedy one-step episodes per evaluation.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
