"""Proto-value networks on four rooms seen as pixels: do more tasks need more capacity?

Claim (Farebrother et al. 2023, arXiv 2304.12567): more auxiliary tasks make better features, but only if the network is
large enough for them.

Second version. The first (proto_value_capacity.json) compared differences of errors, which say little where one error
is several times the other; this one, written without knowledge of its result, compares factors.

Fixed before running. Pictures of the 104 cells without a goal; a convolution of 16 filters, then one hidden layer of
d units, the features phi. T linear heads, each the value of a random set that holds a cell with chance 0.1, under
uniformly random moves; the loss is `losses.proto_value`'s with values of states in place of q, summed over tasks, exact
expectation over all cells and moves; target network tau 0.05; Adam 1e-3, 5 000 steps. gamma is 0.9 (the paper's 0.99
makes all values nearly one constant here), and heads begin with the mean value 0.1 / (1 - gamma) as their bias. Metric:
error 1 - R^2 of a linear probe (ridge 0.01) for V*(s) = 0.9^distance of 50 random goals, on the quarter of the cells
that it was not fitted on: mean over the goals and 8 random splits; its logarithm to base 10, a factor of ten being 1.
Grid: d = 8, 32, 128 by T = 10, 100, 1 000. 10 seeds of weights and tasks; goals and splits are the same for all.
Confirmed if, from T = 10 to T = 1 000, the error falls at d = 128, and by a larger factor than at d = 8. Optimiser,
steps, ridge and logarithm were chosen on two keys that are not among the ten, at up to 3 000 steps.

    python experiments/claims/proto_value_capacity.py      (an hour on one core, estimated; a stopped one goes on)
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from common import Claim, effect, main

from offpolicy_jax import diagnostics, parameters, torsos
from offpolicy_jax.environments import four_rooms, make
from offpolicy_jax.losses import proto_value as losses
from offpolicy_jax.networks import function
from offpolicy_jax.training.plots import comparison

DISCOUNT, RATE, TAU, LEARNING_RATE, STEPS, RIDGE = 0.9, 0.1, 0.05, 1e-3, 5_000, 1e-2
WIDTHS, TASKS, GOALS, SPLITS = (8, 32, 128), (10, 100, 1_000), 50, 8
CELLS = len(four_rooms.CELLS)
CLAIM = Claim(
    name="proto_value_capacity",
    claim="more auxiliary tasks make better features, but only with enough capacity",
    paper="Farebrother et al. 2023, arXiv 2304.12567, scaling of tasks and network",
    paper_says="performance grows with the number of tasks if the network grows too (Atari; number not at hand)",
    metric="log10 of a linear probe's error for the optimal values of 50 goals, on cells that it was not fitted on",
    held_equal="convolution, steps, optimiser, sets, goals, splits",
    arms={},
    seeds=10,
    version=2,
    why_again="it compared differences of errors, not factors",
)


def optimal_values(goals):
    """V* (104, goals): 0.9 to the power of the number of moves."""
    moves = four_rooms.transition_matrix().any(axis=0)
    distance, reached = np.full((CELLS, CELLS), np.inf), np.eye(CELLS, dtype=bool)
    for n in range(CELLS):
        distance[reached & np.isinf(distance)] = n
        reached = (moves.astype(float) @ reached) > 0
    return jnp.asarray(DISCOUNT ** distance[:, goals], jnp.float32)


def learn(key, num_tasks, width, steps):
    """Features (104, d) after so many exact steps on T tasks."""
    task_key, torso_key, head_key = jax.random.split(key, 3)
    cumulant = jax.random.bernoulli(task_key, RATE, (CELLS, num_tasks)).astype(jnp.float32)
    network = torsos.torso(make("gridworld/FourRoomsPixels-v0").spec, "small", (width,))
    pixels = jnp.asarray(four_rooms.pictures(goal=None))
    params = {
        "torso": network.init(torso_key, pixels),
        "kernel": jax.random.normal(head_key, (width, num_tasks)) * (2.0 / (width + num_tasks)) ** 0.5,
        "bias": jnp.full(num_tasks, RATE / (1.0 - DISCOUNT)),
    }
    walk, nothing = jnp.asarray(four_rooms.transition_matrix().mean(axis=0), jnp.float32), jnp.zeros(CELLS, bool)

    def features(params):
        return function(network)(params["torso"], pixels)

    def value(params):
        return features(params) @ params["kernel"] + params["bias"]

    def step(_, carry):
        params, target, optimizer = carry
        y = losses.td_target(cumulant, nothing, (walk @ value(target))[..., None], DISCOUNT)

        def loss(params):  # a sum over tasks, for Adam's epsilon
            return losses.td_loss(value(params)[..., None], jnp.zeros(CELLS, jnp.int32), y) * num_tasks

        new, optimizer = parameters.adam_step(jax.grad(loss)(params), optimizer, params, LEARNING_RATE)
        return new, parameters.polyak(target, params, TAU), optimizer

    begin = params, parameters.copy(params), parameters.adam_init(params)
    return features(jax.lax.fori_loop(0, steps, step, begin)[0])


def probe(features, targets, held_out):
    """Mean error over goals and splits, and what the features look like."""
    error = jax.vmap(lambda rows: diagnostics.linear_probe_error(features, targets, RIDGE, rows))(held_out)
    within = jnp.mean(diagnostics.linear_probe_error(features, targets, RIDGE))
    return {"error": jnp.mean(error), "error_on_fitted_cells": within} | diagnostics.feature_statistics(features)


def measure(seeds, quick, root):
    """All widths and numbers of tasks, from the same keys. A cell of the grid that is in `root` is not made again."""
    steps = 5 if quick else STEPS
    random = np.random.default_rng(0)
    targets = optimal_values(random.choice(CELLS, GOALS, replace=False))
    held_out = jnp.asarray(np.stack([random.permutation(CELLS) < CELLS // 4 for _ in range(SPLITS)]))
    keys = jax.random.split(jax.random.key(0), seeds)
    grid = [(d, t) for d in WIDTHS for t in TASKS]
    measurements = {}
    for d, t in grid[: 1 if quick else None]:
        label = f"d = {d}, T = {t}"
        path = root / f"{label}, {seeds} seeds.json" if root else None
        if path is None or not path.exists():
            print(f"{CLAIM.name}: {label}", file=sys.stderr, flush=True)
            one = lambda key, d=d, t=t: probe(learn(key, t, d, steps), targets, held_out)  # noqa: E731
            found = jax.jit(jax.vmap(one))(keys)
            measurements[label] = {name: np.asarray(x, np.float64).round(5).tolist() for name, x in found.items()}
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(measurements[label]))
        else:
            measurements[label] = json.loads(path.read_text())
    if quick:
        return measurements, [], lambda path: None
    errors = {(d, t): np.array(measurements[f"d = {d}, T = {t}"]["error"]) for d, t in grid}
    log = {cell: np.log10(error) for cell, error in errors.items()}
    gain = {d: log[d, min(TASKS)] - log[d, max(TASKS)] for d in WIDTHS}
    nothing, aside = np.zeros(seeds), {"decides": False}
    effects = [
        effect("log10 of the error, T = 10 minus T = 1 000, d = 128", gain[128], nothing, paired=True),
        effect("its fall from T = 10 to 1 000, d = 128 minus d = 8", gain[128], gain[8], paired=True),
        effect("log10 of the error, T = 10 minus T = 1 000, d = 8", gain[8], nothing, paired=True) | aside,
        effect("the same, d = 32", gain[32], nothing, paired=True) | aside,
        effect("log10 of the error, d = 8 minus d = 128, T = 1 000", log[8, 1_000], log[128, 1_000], paired=True)
        | aside,
    ]
    draw = functools.partial(
        comparison,
        panels={"": {f"d = {d}": (TASKS, np.stack([errors[d, t] for t in TASKS])) for d in WIDTHS}},
        xlabel="Random tasks",
        ylabel="Error of the linear probe, 1 − R²",
        caption="Four rooms as pixels: optimal values of 50 goals, in cells that the probe was not fitted on.",
        log="xy",
    )
    return measurements, effects, draw


if __name__ == "__main__":
    sys.exit(main(CLAIM, __doc__, measure))
