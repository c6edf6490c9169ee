"""What a learned value function gets wrong, measured on rollouts."""

import numpy as np


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
