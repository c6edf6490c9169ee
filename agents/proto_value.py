"""Proto-value networks (Farebrother et al. 2023): equations in offpolicy_jax/losses/proto_value.py.

Two phases, told apart by the environment steps. First a network learns auxiliary tasks without any reward, from
demonstrations if there are some (`--demos`, collected by any policy), else from what uniformly random actions meet.
Then its features are frozen (unless `fine_tune`) and control is learned on them, from the replay of both phases: by
DQN with a linear head, or by least-squares policy iteration.

Order of one update of the first phase: thresholds and task network on one batch, then the target network. For
`threshold_steps` only the thresholds learn. As released, one Adam serves both and the thresholds never stop.
"""

import functools
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from agents import dqn as q_learning
from offpolicy_jax import cumulants, parameters, torsos
from offpolicy_jax.cumulants import TaskKind
from offpolicy_jax.errors import UserError
from offpolicy_jax.exploration import epsilon_greedy
from offpolicy_jax.losses import dqn as dqn_losses
from offpolicy_jax.losses import lstd
from offpolicy_jax.losses import proto_value as losses
from offpolicy_jax.losses.td import td_target
from offpolicy_jax.networks import Params, function
from offpolicy_jax.replay import Replay, sample, sample_demonstrations, steps_per_update
from offpolicy_jax.torsos import Outputs, torso
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, PyTree, Transition, zeros

DEMONSTRATIONS = "optional"
CONTROL_METRICS = ("critic/loss", "critic/q_mean")
"""Of the last update of the second phase, or 0: the loss of dqn, or the squared Bellman residual of lspi's solution."""


@struct.dataclass
class Config:
    """Hyper-parameters of proto-value networks. Floats may be traced or carry a seed axis; the others fix shapes."""

    learning_rate: float = 3e-4
    """Adam's step size for torso and task heads."""
    threshold_learning_rate: float = 1e-3
    """Adam's step size for the thresholds."""
    adam_epsilon: float = 1e-8
    """Adam's epsilon for both: 1.5e-4 as released, which slows losses that are means over many tasks."""
    discount: float = 0.99
    """Discount factor gamma of the tasks."""
    tau: float = 0.01
    """Weight of the new parameters in the target network's average."""
    activation_rate: float = 0.01
    """Share p of the data in each task's set of states; hashes round 1 / p to an integer."""
    ridge: float = 1e-4
    """Weight of the identity in the matrix of lspi."""
    tasks: TaskKind = struct.field(pytree_node=False, default="indicator")
    """Sets by thresholds on random networks, or by hashing. As baselines: cumulant, the random networks' outputs
    themselves; behaviour, the logarithm of the action's probability (cloning); none, random features."""
    num_tasks: int = struct.field(pytree_node=False, default=100)
    """T, the number of tasks."""
    tasks_per_network: int = struct.field(pytree_node=False, default=10)
    """Tasks that share one random network."""
    relu_indicators: bool = struct.field(pytree_node=False, default=False)
    """Rectify the random networks' outputs, as released: tasks of dead units are everywhere on or off."""
    freeze_thresholds: bool = struct.field(pytree_node=False, default=False)
    """Keep the thresholds as they are after threshold_steps; as released they go on, and the tasks with them."""
    threshold_steps: int = struct.field(pytree_node=False, default=1_000)
    """Environment steps of a seed, after learning_starts, in which only the thresholds learn: enough for some
    hundreds of gradient steps, or the sets begin far from their rate."""
    pretrain_steps: int = struct.field(pytree_node=False, default=-1)
    """Environment steps of a seed in the first phase, learning_starts and threshold_steps included; -1: half of the
    run's."""
    fine_tune: bool = struct.field(pytree_node=False, default=False)
    """Let dqn train the torso too, instead of the linear head alone."""
    control: Literal["dqn", "lspi"] = struct.field(pytree_node=False, default="dqn")
    """How control is learned in the second phase."""
    lspi_period: int = struct.field(pytree_node=False, default=5_000)
    """Environment steps of a seed between solutions of lspi."""
    lspi_transitions: int = struct.field(pytree_node=False, default=5_000)
    """Transitions that each solution draws from the replay."""
    lspi_iterations: int = struct.field(pytree_node=False, default=20)
    """Rounds of evaluation and improvement of each solution."""
    batch_size: int = struct.field(pytree_node=False, default=256)
    """Transitions per gradient step of the first phase."""
    replay_capacity: int = struct.field(pytree_node=False, default=1_000_000)
    """Transitions that the replay holds, per seed."""
    learning_starts: int = struct.field(pytree_node=False, default=1_000)
    """Uniformly random steps before learning; -1: ten episodes of the environment's time limit."""
    rollout_length: int = struct.field(pytree_node=False, default=1)
    """Steps of each parallel environment between updates."""
    gradient_steps: int = struct.field(pytree_node=False, default=1)
    """Gradient steps per update of the first phase; -1: one per environment step since the last update."""
    dqn: q_learning.Config = q_learning.Config(
        n_step=5, batch_size=32, hidden_sizes=(256,), activation="gelu", learning_starts=0
    )
    """Of the second phase, whose steps count from its beginning; its torso, hidden_sizes and activation are the task
    network's too (the paper's relu, in small networks, leaves most features dormant). Its replay_capacity and
    rollout_length have no effect."""


PRESETS = {
    "paper": Config(
        learning_rate=6.25e-5 * (256 / 32) ** 0.25,
        threshold_learning_rate=6.25e-5 * (256 / 32) ** 0.25,
        adam_epsilon=1.5e-4,
        threshold_steps=62_500,
        learning_starts=20_000,
        pretrain_steps=20_000 + 25 * 62_500,
        dqn=replace(
            q_learning.PRESETS["paper"],
            n_step=5,
            epsilon_decay_steps=1,
            target_period=8_000,
            learning_starts=2_000,
            torso="impala",
            width=8,
            hidden_sizes=(4_096,),
            gradient_steps=1,
        ),
        rollout_length=4,
        gradient_steps=4,
    )
}
"""paper: sizes and rates as released, for --env=ALE/<Game>-v5 --clip-rewards --atari.sticky-actions=0
--atari.noop-max=30 and a dataset (--demos); 133 million parameters. Beyond what is said above, the release rectifies
its indicators, averages the thresholds' loss over tasks, which slows them, and begins control on an empty replay."""


@struct.dataclass
class State:
    """Everything that learning changes, what is drawn once, and the (static) networks they belong to."""

    params: Params
    target: Params
    thresholds: jax.Array  # (T,)
    activation: jax.Array  # (T,): running mean of the cumulants, from p
    drawn: Any  # of the random networks, or coefficients of the hashes; never trained
    optimizer: optax.OptState
    threshold_optimizer: optax.OptState
    control: q_learning.State
    metrics: dict[str, jax.Array]  # of the last update of either phase
    network: Outputs = struct.field(pytree_node=False)  # T A values, T linear heads on the features
    cumulant_network: Outputs = struct.field(pytree_node=False)


def gradient_step(
    config: Config, state: State, batch: Transition, learn: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """One step of thresholds and, where `learn` () is true, task network on one batch (B, ...)."""
    num_tasks, num_actions = state.network.groups, state.network.num // state.network.groups

    def q(params, observation):
        return function(state.network)(params, observation).reshape(-1, num_tasks, num_actions)

    outputs, r = evaluate_tasks(config, state, batch.observation)
    target = losses.td_target(r, batch.terminated, q(state.target, batch.next_observation), config.discount)

    def task_loss(params):
        values = q(params, batch.observation)
        if config.tasks == "behaviour":
            return -jnp.mean(dqn_losses.take(jax.nn.log_softmax(values[:, 0]), batch.action)), jnp.mean(values)
        return losses.td_loss(values, batch.action, target), jnp.mean(values)

    def descend(gradients, optimizer, params, learning_rate):
        return parameters.adam_step(gradients, optimizer, params, learning_rate, config.adam_epsilon)

    def descend_tasks():
        (value, q_mean), gradients = jax.value_and_grad(task_loss, has_aux=True)(state.params)
        params, optimizer = descend(gradients, state.optimizer, state.params, config.learning_rate)
        return params, optimizer, value, q_mean

    # As released, zero gradients run through Adam meanwhile: its first real steps are then five times too long or more.
    wait = lambda: (state.params, state.optimizer, jnp.zeros(()), jnp.zeros(()))  # noqa: E731
    params, optimizer, value, q_mean = jax.lax.cond(learn, descend_tasks, wait)

    thresholds, threshold_optimizer = state.thresholds, state.threshold_optimizer
    if config.tasks == "indicator":
        gradient = jax.grad(losses.quantile_loss)(thresholds, outputs, config.activation_rate)
        gradient = jnp.where(learn & config.freeze_thresholds, 0.0, gradient * config.num_tasks)
        moved, threshold_optimizer = descend(gradient, threshold_optimizer, thresholds, config.threshold_learning_rate)
        thresholds = jnp.where(learn & config.freeze_thresholds, thresholds, moved)
    activation = state.activation + 0.01 * (jnp.mean(r, axis=0) - state.activation)
    state = replace(
        state,
        params=params,
        target=parameters.polyak(state.target, state.params, config.tau),  # one step late, as released
        thresholds=thresholds,
        activation=activation,
        optimizer=optimizer,
        threshold_optimizer=threshold_optimizer,
    )
    metrics = {"tasks/loss": value, "tasks/q_mean": q_mean}
    if config.tasks in ("indicator", "hash"):
        metrics |= cumulants.activity(activation, config.activation_rate)
    return state, metrics


def evaluate_tasks(config: Config, state: State, observation: PyTree) -> tuple[jax.Array, jax.Array]:
    """What the thresholds are held against, f (B, T), and the cumulants r(s) (B, T)."""
    of_sets = config.activation_rate, config.relu_indicators
    drawn = state.cumulant_network, state.drawn, state.thresholds
    return cumulants.evaluate(config.tasks, *drawn, observation, *of_sets)


def update(
    config: Config, state: State, replay: Replay, step: jax.Array, key: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient steps of the phase that `step` is in."""
    unit = config.rollout_length * replay.num_envs
    if max(config.pretrain_steps + config.dqn.learning_starts, unit) < config.dqn.n_step * replay.num_envs:
        raise UserError(
            f"--config.pretrain_steps must be at least {config.dqn.n_step * replay.num_envs}, for dqn.n_step"
        )
    wait = config.learning_starts + (config.threshold_steps if config.tasks == "indicator" else 0)
    if config.tasks != "none" and config.pretrain_steps < wait + unit:
        raise UserError(
            f"--config.pretrain_steps is {config.pretrain_steps} and learning starts after {wait} of them: ask for "
            "more --steps, or lower --config.learning_starts and --config.threshold_steps"
        )
    later = step - config.pretrain_steps  # of the second phase, up to now

    def pretrain(state: State) -> State:
        if config.tasks == "none":
            return state
        learn = step - unit >= config.learning_starts + config.threshold_steps
        learn = learn | (config.tasks != "indicator")
        draw = sample if replay.demonstrations is None else sample_demonstrations

        def one(state, key):
            return gradient_step(config, state, draw(replay, key, config.batch_size), learn)

        num_steps = steps_per_update(replay, config.rollout_length, config.gradient_steps)
        state, metrics = jax.lax.scan(one, state, jax.random.split(key, num_steps))
        if config.fine_tune:  # what dqn will begin with
            begun = {"params": state.control.params["params"] | {"torso": state.params["params"]["torso"]}}
            state = replace(state, control=replace(state.control, params=begun, target=begun))
        return replace(state, metrics=state.metrics | jax.tree.map(jnp.mean, metrics))

    def learn_control(state: State) -> State:
        if config.control == "lspi":
            due = later // config.lspi_period != (later - unit) // config.lspi_period
            due = due | (later - unit < jnp.maximum(config.dqn.learning_starts, 1))  # the first update
            keep = lambda: (state.control, {name: state.metrics[name] for name in CONTROL_METRICS})  # noqa: E731
            control, metrics = jax.lax.cond(due, lambda: solve(config, state, replay, key), keep)
            return replace(state, control=control, metrics=state.metrics | metrics)
        seen = lambda x: x if config.fine_tune else features(config, state, x)  # noqa: E731
        control, metrics = q_learning.learn(config.dqn, state.control, replay, config.rollout_length, key, seen)
        control = q_learning.refresh_target(config.dqn, control, later, unit)
        return replace(state, control=control, metrics=state.metrics | metrics)

    waiting = (later > 0) & (later < config.dqn.learning_starts)
    phase = jnp.where(later <= 0, 0, jnp.where(waiting, 1, 2))
    state = jax.lax.switch(phase, [pretrain, lambda state: state, learn_control], state)
    return state, state.metrics


def solve(
    config: Config, state: State, replay: Replay, key: jax.Array
) -> tuple[q_learning.State, dict[str, jax.Array]]:
    """The linear head of least-squares policy iteration on transitions of the replay; its squared Bellman residual."""
    batch = sample(replay, key, config.lspi_transitions)

    def in_blocks(observations):  # a few at a time: as patches, pixels take many times their size
        one = lambda x: features(config, state, jax.tree.map(lambda leaf: leaf[None], x))[0]  # noqa: E731
        return jax.lax.map(one, observations, batch_size=256)

    seen = {name: in_blocks(getattr(batch, name)) for name in ("observation", "next_observation")}
    batch, discount = replace(batch, **seen), config.dqn.discount
    head = lstd.lspi_head(batch, state.control.network.num, discount, config.ridge, config.lspi_iterations)
    control = replace(state.control, params={"params": {"head": head}})
    q = functools.partial(function(control.network), control.params)
    values = q(batch.observation)
    target = td_target(batch.reward, batch.terminated, jnp.max(q(batch.next_observation), axis=1), discount)
    residual = dqn_losses.take(values, batch.action) - target
    metrics = jnp.mean(jnp.square(residual)), jnp.mean(values)
    return control, dict(zip(CONTROL_METRICS, metrics, strict=True))


def init(config: Config, spec: EnvironmentSpec, key: jax.Array) -> State:
    """Networks, tasks and optimisers, for discrete actions. Raises UserError for what the tasks cannot read."""
    if not spec.discrete:
        raise UserError(f"proto_value needs discrete actions and {spec.id} has continuous ones")
    if config.control == "lspi" and config.fine_tune:
        raise UserError("--config.fine_tune needs --config.control=dqn: lspi solves for the head alone")
    if not config.dqn.hidden_sizes:
        raise UserError("--config.dqn.hidden_sizes must name a layer: the last one is the features")
    network_key, cumulant_key, control_key = jax.random.split(key, 3)
    sizes = config.dqn.hidden_sizes
    options = {"kernel_init": config.dqn.kernel_init, "activation": config.dqn.activation}
    layers = torso(spec, config.dqn.torso, sizes, config.dqn.width, **options)
    num_tasks = 1 if config.tasks == "behaviour" else config.num_tasks
    network = Outputs(layers, num_tasks * spec.num_actions, groups=num_tasks)
    params = network.init(network_key, zeros(spec.observation, (1,)))
    random = torso(spec, "nature" if layers.kind == "impala" else layers.kind, sizes if layers.kind == "mlp" else ())
    cumulant_network = Outputs(random, config.tasks_per_network)
    drawn = cumulants.draw(config.tasks, cumulant_network, num_tasks, spec, cumulant_key)
    seen = spec if config.fine_tune else replace(spec, observation=ArraySpec((sizes[-1],), np.dtype(np.float32)))
    control_config = config.dqn if config.fine_tune else replace(config.dqn, torso="mlp", hidden_sizes=())
    control = q_learning.init(control_config, seen, control_key)
    names = list(CONTROL_METRICS)
    if config.tasks != "none":
        names += ["tasks/loss", "tasks/q_mean"]
    if config.tasks in ("indicator", "hash"):
        names += ["tasks/activation", "tasks/dead", "tasks/always_on"]
    thresholds = jnp.zeros(num_tasks)
    return State(
        params=params,
        target=parameters.copy(params),
        thresholds=thresholds,
        activation=jnp.full(num_tasks, config.activation_rate, jnp.float32),
        drawn=drawn,
        optimizer=parameters.adam_init(params),
        threshold_optimizer=parameters.adam_init(thresholds),
        control=control,
        metrics={name: jnp.zeros(()) for name in names},
        network=network,
        cumulant_network=cumulant_network,
    )


def act(
    config: Config, state: State, observation: PyTree, step: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """An action (E,): uniformly random in the first phase, epsilon-greedy in the second."""
    later = step - config.pretrain_steps
    greedy = policy(config, state, observation)
    epsilon = q_learning.exploration(config.dqn, later)
    return epsilon_greedy(greedy, state.control.network.num, jnp.where(later < 0, 1.0, epsilon), key), {}


def policy(config: Config, state: State, observation: PyTree) -> jax.Array:
    """The action of greatest value, (E,); of an untrained head in the first phase."""
    seen = observation if config.fine_tune else features(config, state, observation)
    return q_learning.policy(config.dqn, state.control, seen)


def features(config: Config, state: State, observation: PyTree) -> jax.Array:
    """phi(s), (B, F), as the first phase left them. With `fine_tune` those that dqn goes on to train."""
    if config.fine_tune:
        return torsos.features(state.control.network, state.control.params, observation)
    return torsos.features(state.network, state.params, observation)
