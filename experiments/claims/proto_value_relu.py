"""The ReLU of proto-value networks' released indicators: does it leave tasks that tell no states apart?

A claim about an implementation (losses/proto_value.py has the paper's equations). The random networks of Farebrother et
al. 2023, arXiv 2304.12567, end in a ReLU in the public code. A unit that is negative in all but a few states then has
its quantile at 0, where its threshold hovers, and its set of states is nearly empty or nearly everything.

Fixed before running. States: uniformly random play of minatar/Breakout-v0, 64 environments of 256 steps; thresholds are
fitted on half of the environments, sets are counted on the other half. Networks: those of agents/proto_value.py, 10
tasks each, 100 tasks, without biases at first. Thresholds: 4 000 steps of Adam, step size 1e-3, on the quantile loss of
batches of 256 states, from 0. Rates: p = 0.01, the paper's, and 0.1. Arms: linear outputs, the default here, and
rectified ones. Metric: share of the tasks whose set holds less than p / 10 or more than 9 / 10 of the states, as the
metrics tasks/dead and tasks/always_on count them; 10 seeds of networks and play, the same for both arms. Confirmed if
the share is larger with the ReLU, at both rates. The correlation of tasks is not looked at.

    python experiments/claims/proto_value_relu.py      (three minutes on two cores)
"""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, as_list, effect, main

from offpolicy_jax import cumulants, parameters
from offpolicy_jax.environments import make
from offpolicy_jax.losses import proto_value as losses
from offpolicy_jax.torsos import Outputs, torso
from offpolicy_jax.training.plots import comparison

ENVIRONMENT, ENVIRONMENTS, LENGTH = "minatar/Breakout-v0", 64, 256
TASKS, TASKS_PER_NETWORK, RATES, BATCH, LEARNING_RATE, STEPS = 100, 10, (0.01, 0.1), 256, 1e-3, 4_000
ARMS = {"linear": False, "ReLU": True}
CLAIM = Claim(
    name="proto_value_relu",
    claim="with the released ReLU more indicator tasks are nearly nowhere or nearly everywhere on",
    paper="Farebrother et al. 2023, arXiv 2304.12567, and its public code",
    paper_says="sets hold a share p of the data (equation); the code rectifies what it thresholds",
    metric="share of 100 tasks that hold less than p / 10 or more than 9 / 10 of states from other episodes",
    held_equal="networks, states, steps of the quantile loss",
    arms={},
    seeds=10,
)


def play(key, length):
    """Observations of uniformly random moves, (T, E, ...)."""
    environment: Any = make(ENVIRONMENT)
    reset_key, action_key = jax.random.split(key)
    state, first = jax.vmap(environment.reset)(jax.random.split(reset_key, ENVIRONMENTS))

    def step(carry, key):
        state, observation = carry
        action = jax.random.randint(key, (ENVIRONMENTS,), 0, environment.spec.num_actions)
        state, following = jax.vmap(environment.step)(state, action)
        return (state, following.observation), observation

    return jax.lax.scan(step, (state, first), jax.random.split(action_key, length))[1]


def activation(key, relu, rate, steps, length):
    """Share of unseen states in each task's set, (T,)."""
    play_key, draw_key, batch_key = jax.random.split(key, 3)
    spec = make(ENVIRONMENT).spec
    network = Outputs(torso(spec, "auto", ()), TASKS_PER_NETWORK)
    drawn = cumulants.draw("indicator", network, TASKS, spec, draw_key)
    states = jnp.moveaxis(play(play_key, length), 1, 0)  # (E, T, ...)
    seen, unseen = (
        x.reshape(-1, *spec.observation.shape) for x in (states[: ENVIRONMENTS // 2], states[ENVIRONMENTS // 2 :])
    )
    evaluate = functools.partial(cumulants.evaluate, "indicator", network, drawn, rate=rate, relu=relu)
    outputs = evaluate(jnp.zeros(TASKS), seen)[0]  # of all states at once: they do not depend on the thresholds

    def step(carry, key):
        thresholds, optimizer = carry
        batch = outputs[jax.random.randint(key, (BATCH,), 0, len(outputs))]
        gradient = jax.grad(losses.quantile_loss)(thresholds, batch, rate) * TASKS
        return parameters.adam_step(gradient, optimizer, thresholds, LEARNING_RATE), None

    begin = jnp.zeros(TASKS), parameters.adam_init(jnp.zeros(TASKS))
    (thresholds, _), _ = jax.lax.scan(step, begin, jax.random.split(batch_key, steps))
    return jnp.mean(evaluate(thresholds, unseen)[1], axis=0)


def measure(seeds, quick, root):
    """Both arms at both rates, from the same keys."""
    steps, length = (20, 16) if quick else (STEPS, LENGTH)
    keys = jax.random.split(jax.random.key(0), seeds)
    measurements, effects, panels = {}, [], {}
    for rate in RATES:
        shares, panel = {}, {}
        for label, relu in ARMS.items():
            one = functools.partial(activation, relu=relu, rate=rate, steps=steps, length=length)
            on = np.asarray(jax.jit(lambda keys, one=one: jax.lax.map(one, keys))(keys), np.float64)
            dead, always = (on < 0.1 * rate).mean(axis=1), (on > 0.9).mean(axis=1)
            shares[label] = dead + always
            panel[label] = (np.arange(1, TASKS + 1), np.sort(on, axis=1).T)
            measurements[f"{label}, p = {rate}"] = {
                "degenerate": as_list(shares[label]),
                "dead": as_list(dead),
                "always_on": as_list(always),
                "median_activation": as_list(np.median(on, axis=1), 5),
            }
        panels[f"p = {rate}"] = panel
        label = f"share of degenerate tasks with the ReLU minus without, p = {rate}"
        effects.append(effect(label, shares["ReLU"], shares["linear"], paired=True))

    def draw(path):
        comparison(
            path,
            panels,
            xlabel="Tasks of a seed, sorted",
            ylabel="Share of states in the task's set",
            caption="Random play of MinAtar's Breakout, unseen episodes.",
        )

    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
