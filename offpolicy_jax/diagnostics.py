"""What learned values and collected data get wrong, measured on rollouts."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from offpolicy_jax import linalg
from offpolicy_jax.networks import Params

T = TypeVar("T")


def value_bias(
    value: np.ndarray,
    reward: np.ndarray,
    bonus: np.ndarray,
    terminated: np.ndarray,
    length: np.ndarray,
    discount: np.ndarray | float,
    tail: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean over steps of predicted minus Monte-Carlo soft return, and of the prediction: two arrays (...).

    One episode in each of E environments: `value` is the prediction for step t's action, which the policy sampled,
    `reward` what followed, `bonus` what entropy adds to the value of its state, -alpha log pi(a|s) (zeros for ordinary
    returns); all (T, ..., E). The episode takes the first `length` (..., E) steps, and `terminated` says how it ended.

        G_t = r_t + discount (bonus_{t+1} + G_{t+1})

    Where the episode was cut rather than terminated, G is the prediction at its last step. A bias b then shows as
    b (1 - discount^n) n steps before the cut: only steps with discount^n <= `tail` count, and the answer is NaN if the
    episodes are too short for any. `discount` is a scalar or (...).
    """
    steps = np.arange(len(value)).reshape(-1, *[1] * length.ndim)
    alive, last = steps < length, steps == length - 1
    ended = np.any(terminated & last, axis=0)
    discount = np.asarray(discount, np.float64)
    discount = discount.reshape(*discount.shape, *[1] * (length.ndim - discount.ndim))
    returns = np.where(last, np.where(terminated, reward, value), 0.0).astype(np.float64)
    for t in range(len(value) - 2, -1, -1):
        following = reward[t] + discount * (bonus[t + 1] + returns[t + 1])
        returns[t] = np.where(t + 1 < length, following, returns[t])
    distance = np.maximum(length - 1 - steps, 0)
    counted = alive & (ended | (discount**distance <= tail))
    with np.errstate(invalid="ignore", divide="ignore"):
        number = np.sum(counted, axis=(0, -1))
        mean = lambda x: np.sum(np.where(counted, x, 0.0), axis=(0, -1)) / number  # noqa: E731
        return np.where(number > 0, mean(value - returns), np.nan), np.where(number > 0, mean(value), np.nan)


def tabular_sampling_error(counts: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Sampling error of data against a tabular policy, in nats: sum_s n_s / N KL(empirical pi(.|s) || pi(.|s)).

    Exact. `counts` (..., S, A) says how often each action was taken in each state, `log_probs` (..., S, A) is log pi.
    Returns (...), 0 without data. On-policy data of N steps has about (A - 1) / 2N for each state that was visited.
    """
    counts = jnp.asarray(counts, jnp.float32)
    visits = jnp.sum(counts, axis=-1, keepdims=True)
    empirical = counts / jnp.maximum(visits, 1.0)
    gap = jnp.where(counts > 0, jnp.log(jnp.where(counts > 0, empirical, 1.0)) - log_probs, 0.0)
    return jnp.sum(counts * gap, axis=(-2, -1)) / jnp.maximum(jnp.sum(visits, axis=(-2, -1)), 1.0)


@linalg.in_float32
def sampling_error(log_prob: Callable[[T], jax.Array], params: T, mask: jax.Array, iterations: int = 100) -> jax.Array:
    """Sampling error of data D against a policy, in nats: max_w E_D[log pi_w(a|s)] - E_D[log pi(a|s)] (PROPS).

    `log_prob(params)` gives log pi (N,) of D's actions under the policy with these parameters, from which L-BFGS climbs
    to the maximum; `mask` (N,) says which count. What is free is what `params` holds: see `last_layers`. About
    k / 2N for k free parameters if D is on-policy. The likelihood should have a maximum: no fewer data than parameters.
    Only errors with the same free parameters can be compared.
    """
    count = jnp.maximum(jnp.sum(mask), 1)

    def loss(params: T) -> jax.Array:
        return -jnp.sum(jnp.where(mask, log_prob(params), 0.0)) / count

    optimizer = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)
    first = loss(params)

    def step(_, carry):
        params, state, least = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return params, state, jnp.fmin(least, value)

    fit, _, least = jax.lax.fori_loop(0, iterations, step, (params, optimizer.init(params), first))  # type: ignore[arg-type]
    return first - jnp.fmin(least, loss(fit))


def last_layers(params: Params) -> tuple[Params, Callable[[Params], Params]]:
    """The parameters of a policy outside its torso, and a function that puts others of them back beside the torso.

    They make the policy's log-likelihood nearly concave, and few: its fit needs neither luck nor a step size.
    """
    layers = params["params"]
    torso = {name: x for name, x in layers.items() if name.startswith("MLP")}
    free = {name: x for name, x in layers.items() if name not in torso}
    return free, lambda free: {"params": torso | free}


def effective_rank(features: jax.Array, delta: float = 0.01) -> tuple[jax.Array, jax.Array]:
    """Two ranks of features (N, d), each a scalar from 1 to d (0 if all are 0).

    srank_delta, the fewest singular values that sum to 1 - delta of all (Kumar et al. 2021, arXiv 2010.14498), and the
    exponential of the entropy of the singular values' shares (Roy & Vetterli 2007).
    """
    values = linalg.singular_values(features)
    total = jnp.sum(values)
    share = values / jnp.where(total > 0, total, 1.0)
    srank = jnp.sum(jnp.cumsum(share) < 1.0 - delta) + 1
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))
    return jnp.where(total > 0, srank, 0), jnp.where(total > 0, jnp.exp(entropy), 0.0)


def dormant_units(features: jax.Array, threshold: float = 0.025) -> jax.Array:
    """Share of the units of features (N, d) whose mean size is at most `threshold` times the layer's mean.

    Sokar et al. 2023, arXiv 2302.12902, equation 1; with threshold 0 the units that are 0 everywhere.
    """
    size = jnp.mean(jnp.abs(features), axis=0)
    return jnp.mean(size <= threshold * jnp.mean(size))


def feature_statistics(features: jax.Array) -> dict[str, jax.Array]:
    """Both effective ranks, share of dormant units and mean norm of any agent's features (N, d), scalars.

    Of `agent.features(config, state, observations)`, where the agent has them.
    """
    srank, rank = effective_rank(features)
    norm = jnp.mean(jnp.linalg.norm(features, axis=1))
    return {"srank": srank, "effective_rank": rank, "dormant": dormant_units(features), "norm": norm}


@linalg.in_float32
def linear_probe_error(
    features: jax.Array, targets: jax.Array, ridge: float = 1e-6, held_out: jax.Array | None = None
) -> jax.Array:
    """Share of the variance of targets (N, k) that no linear function of features (N, d) and 1 explains, 1 - R^2, (k,).

    By ridge regression, with `ridge` times the features' mean variance; 1 is free. With `held_out`, bool (N,), the fit
    is on the other rows and the error on these.
    """
    tested = jnp.ones(len(features), features.dtype) if held_out is None else held_out.astype(features.dtype)
    fitted = tested if held_out is None else 1.0 - tested
    mean = lambda x, rows: rows @ x / jnp.sum(rows)  # noqa: E731
    x, y = features - mean(features, fitted), targets - mean(targets, fitted)
    seen = x * fitted[:, None]
    scale = jnp.sum(jnp.square(seen)) / x.shape[1]
    scale = jnp.where(scale > 0.0, scale, 1.0)  # features that are constant explain nothing
    weights = linalg.solve(seen.T @ seen + ridge * scale * jnp.eye(x.shape[1]), seen.T @ y)
    residual = tested @ jnp.square(y - x @ weights)
    return residual / (tested @ jnp.square(targets - mean(targets, tested)))


@linalg.in_float32
def principal_cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines of the principal angles between the spans of a (n, d) and b (n, e), largest first, (min(d, e),).

    Bjorck & Golub 1973. All 1: one span holds the other; 0: there is a direction at right angles to it, or a or b
    spans fewer dimensions than it has columns.
    """
    cosines = linalg.singular_values(linalg.orthonormal_basis(a).T @ linalg.orthonormal_basis(b))
    return jnp.clip(cosines, 0.0, 1.0)
