"""PROPS while learning: is its buffer's sampling error below that of on-policy data?

Claim (Corrado & Hanna 2023, arXiv 2311.08290): PROPS lowers sampling error throughout training.

Fixed before running. Task: CartPole (phys2d/CartPole-v1), 150 000 steps, PROPS with b = 2, n = 1 024, m = 128 and the
other settings of props_returns.py. After every eighth batch, before the target learns from it, the replay's sampling
error against the target is held beside that of as many fresh on-policy steps: n of the target, n of the one before it,
from new episodes. Both by the same fit (the policy's last layer). Metric: their means over the run, in nats; 10 seeds.
Confirmed if PROPS's is below.

    python experiments/claims/props_learning.py      (five minutes on two cores)
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Arm, Claim, effect, main
from sampling import Collection, policy_error, replay_errors

from agents import ppo
from offpolicy_jax import environments, parameters
from offpolicy_jax.networks import function
from offpolicy_jax.training.plots import comparison
from offpolicy_jax.transition import Transition

TASK, N, EVERY, BATCHES = "phys2d/CartPole-v1", 1_024, 8, 144
TARGET = ppo.Config(learning_rate=1e-3, entropy_weight=0.01, rollout_length=N, buffer_batches=2)
CLAIM = Claim(
    name="props_learning",
    claim="throughout training, the buffer of PROPS has less sampling error than on-policy data of the same policies",
    paper="Corrado & Hanna 2023, arXiv 2311.08290; sampling errors from the authors' archives",
    paper_says="3 to 20 % less on five MuJoCo tasks, 3 % more on HalfCheetah",
    metric="sampling error of the last two batches, mean over the run, in nats",
    held_equal="target policies, number of steps, fit",
    arms={
        "PROPS": Arm(
            "props", {"target": TARGET, "target_kl": 0.03, "kl_weight": 0.1, "minibatches": 8, "rollout_length": 128}
        )
    },
    seeds=10,
)


@jax.jit
def on_policy_errors(target: ppo.State, before: ppo.State, key: jax.Array) -> jax.Array:
    """Sampling error (S,) of n fresh steps of each policy against the later one, all seeds."""
    environment: Any = environments.make(TASK)

    def rollout(state: ppo.State, key: jax.Array) -> Transition:
        def step(carry, key):
            inner, observation = carry
            policy = function(state.policy_network)(state.parameters["policy"], observation[None])
            action, extras = ppo.behave(policy, key)
            inner, taken = environment.step(inner, action[0])
            ended = taken.terminated, taken.truncated
            row = Transition(observation, action[0], taken.reward, taken.next_observation, *ended, extras)
            return (inner, taken.observation), row

        first, *keys = jax.random.split(key, N + 1)
        return jax.lax.scan(step, environment.reset(first), jnp.stack(keys))[1]

    def one(target: ppo.State, before: ppo.State, key: jax.Array) -> jax.Array:
        both = rollout(before, jax.random.fold_in(key, 0)), rollout(target, jax.random.fold_in(key, 1))
        data = jax.tree.map(lambda *x: jnp.concatenate(x), *both)
        return policy_error(target, target.parameters["policy"], data, jnp.ones(2 * N, bool))

    return jax.vmap(one)(target, before, jax.random.split(key, len(jax.tree.leaves(target.parameters)[0])))


def measure(seeds, quick, root):
    """Both errors at every eighth batch."""
    batches = EVERY if quick else BATCHES
    run = Collection(CLAIM.arms["PROPS"].build(), TASK, seeds, BATCHES * N)
    before = target = parameters.copy(run.target)
    steps, errors = [], {"PROPS": [], "on-policy": []}
    for batch in range(1, batches + 1):
        run.advance(N)
        if batch % EVERY == 0:  # `target` has collected the last batch and `before` the one before
            steps.append(batch * N)
            errors["PROPS"].append(np.asarray(replay_errors(run.replay, target)))
            errors["on-policy"].append(np.asarray(on_policy_errors(target, before, jax.random.key(batch))))
        before, target = target, parameters.copy(run.target)
    curves = {label: np.array(values) for label, values in errors.items()}
    mean = {label: values.mean(axis=0) for label, values in curves.items()}
    measurements: dict = {
        label: {
            "mean_over_run": mean[label].round(6).tolist(),
            "mean_over_seeds": curves[label].mean(axis=1).round(6).tolist(),
            "steps": steps,
        }
        for label in curves
    }
    measurements["share of measurements where PROPS is lower"] = float(np.mean(curves["PROPS"] < curves["on-policy"]))
    effects = [effect("sampling error of on-policy data minus PROPS", mean["on-policy"], mean["PROPS"])]
    draw = functools.partial(
        comparison,
        panels={"CartPole, while learning": {label: (steps, values) for label, values in curves.items()}},
        xlabel="Environment steps per seed",
        ylabel="Sampling error (nats)",
        caption="Of the last two batches against the target: the policy's last layer refitted.",
    )
    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
