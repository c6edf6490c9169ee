"""AILBoost with exact steps: does boosting bring the mixture's occupancy to the expert's?

Claim (Chang et al. 2024, arXiv 2404.08513): adding learners with a fixed weight alpha, each trained against the
discriminator of the mixture, minimises KL(d_t || d^e); the newest learner alone, as in on-policy adversarial imitation
(alpha = 1), need not.

Fixed before running. Task: a 5 x 5 torus, five actions (stay, four ways; one in ten goes astray), discount 0.95, start
in one cell; the expert is the soft-optimal policy (temperature 1) for normal random rewards of cells, so that it has
full support. Each round: D = log(d^e / d_t), exact; the learner is the soft-optimal policy (temperature 0.5) for the
reward D; d_{t+1} by the mixture's step. 200 rounds. Arms: alpha = 0.05; uniform weights (alpha_t = 1 / (t + 1)); alpha
= 1. Metric: KL(d_t || d^e) in nats, from its value at the uniform policy, mean of the last 20 rounds; 50 random
experts. Confirmed if alpha = 0.05 ends below a tenth of the first KL and below alpha = 1. Uniform weights are reported
beside.

    python experiments/claims/ailboost_tabular.py      (seconds)
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, effect, main

from offpolicy_jax import linalg
from offpolicy_jax.training.plots import comparison

SIDE, DISCOUNT, ROUNDS = 5, 0.95, 200
STEPS = {"alpha = 0.05": lambda t: 0.05, "uniform weights": lambda t: 1.0 / (t + 1.0), "alpha = 1": lambda t: 1.0}
CLAIM = Claim(
    name="ailboost_tabular",
    claim="boosting with a fixed weight brings the mixture's occupancy near the expert's; the newest learner alone "
    "does not",
    paper="Chang et al. 2024, arXiv 2404.08513, boosting as Frank-Wolfe on the reverse KL",
    paper_says="the mixture minimises KL(d || d^e) (theory; no number)",
    metric="KL(d_t || d^e) in nats, mean of the last 20 of 200 rounds",
    held_equal="experts, first policy, temperature of the learners",
    arms={},
    seeds=50,
)


def transitions():
    """P(s'|s, a), (25, 5, 25)."""
    probability = np.zeros((SIDE * SIDE, 5, SIDE * SIDE))
    ways = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])
    for state in range(SIDE * SIDE):
        for action in range(5):
            for taken in range(5):
                row, column = (np.array(divmod(state, SIDE)) + ways[taken]) % SIDE
                probability[state, action, row * SIDE + column] += 0.9 * (taken == action) + 0.1 / 5
    return jnp.asarray(probability)


def soft_optimal(p, reward, temperature):
    """The policy (S, A) that maximises discounted reward (S, A) plus `temperature` times entropy."""

    def backup(_, v):
        return temperature * jax.nn.logsumexp((reward + DISCOUNT * p @ v) / temperature, axis=-1)

    v = jax.lax.fori_loop(0, 400, backup, jnp.zeros(SIDE * SIDE))
    return jax.nn.softmax((reward + DISCOUNT * p @ v) / temperature, axis=-1)


def occupancy(p, policy):
    """Discounted occupancy of states and actions (S, A) from the first state; it sums to one."""
    chain = jnp.einsum("sa,sat->st", policy, p)
    first = jnp.zeros(SIDE * SIDE).at[0].set(1.0 - DISCOUNT)
    return linalg.solve(jnp.eye(SIDE * SIDE) - DISCOUNT * chain.T, first)[:, None] * policy


def kl(d, expert):
    """KL(d || d^e) in nats."""
    return jnp.sum(d * (log(d) - log(expert)))


def log(d):
    """Logarithm of densities, floored at 1e-30: the learners of alpha = 1 give actions up altogether."""
    return jnp.log(jnp.maximum(d, 1e-30))


def boost(key, step, rounds):
    """KL(d_t || d^e) for t = 0 .. rounds, for one random expert."""
    p = transitions()
    expert = occupancy(p, soft_optimal(p, jnp.broadcast_to(jax.random.normal(key, (SIDE * SIDE, 1)), (25, 5)), 1.0))

    def one(d, t):
        learner = soft_optimal(p, log(expert) - log(d), 0.5)
        alpha = step(t)
        d = (1.0 - alpha) * d + alpha * occupancy(p, learner)
        return d, kl(d, expert)

    d = occupancy(p, jnp.full((SIDE * SIDE, 5), 0.2))
    _, curve = jax.lax.scan(one, d, jnp.arange(1.0, rounds + 1.0))
    return jnp.concatenate([kl(d, expert)[None], curve])


def measure(seeds, quick, root):
    """All arms on the same experts."""
    rounds = 20 if quick else ROUNDS
    keys = jax.random.split(jax.random.key(0), seeds)
    curves = {
        label: np.asarray(jax.jit(jax.vmap(lambda k, step=step: boost(k, step, rounds)))(keys), np.float64).T
        for label, step in STEPS.items()
    }
    last = {label: curve[-20:].mean(axis=0) for label, curve in curves.items()}
    first = curves["alpha = 0.05"][0]
    measurements = {
        label: {
            "first_kl": float(first.mean().round(4)),
            "last_kl": last[label].round(5).tolist(),
            "mean": float(last[label].mean().round(5)),
            "share_of_rounds_that_fall": float(np.mean(np.diff(curve, axis=0) < 0.0).round(3)),
        }
        for label, curve in curves.items()
    }
    effects = [
        effect("a tenth of the first KL minus alpha = 0.05", 0.1 * first, last["alpha = 0.05"]),
        effect("KL of alpha = 1 minus alpha = 0.05", last["alpha = 1"], last["alpha = 0.05"]),
        effect("KL of uniform weights minus alpha = 0.05", last["uniform weights"], last["alpha = 0.05"])
        | {"decides": False},
    ]

    def draw(path):
        comparison(
            path,
            {"5 x 5 torus, exact steps": {label: (np.arange(rounds + 1), curve) for label, curve in curves.items()}},
            xlabel="Learners in the mixture",
            ylabel=r"KL$(d_t\,\|\,d^e)$ (nats)",
            caption="Random experts.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
