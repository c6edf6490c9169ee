"""Speed of this library, each measurement alone in its own process: one command, one JSON line on standard output.

    python experiments/benchmarks/ours.py train --env=HalfCheetah-v5 --steps=3000 --seeds=1
    python experiments/benchmarks/ours.py train --env=phys2d/Pendulum-v0 --steps=3000 --seeds=8
    python experiments/benchmarks/ours.py update --env=phys2d/Pendulum-v0
    python experiments/benchmarks/ours.py on_policy --agent=ppo --seeds=8
    python experiments/benchmarks/ours.py ailboost --learners=1000
    python experiments/benchmarks/ours.py replay
    python experiments/benchmarks/ours.py matmul

`train` times steps that each act, store and learn (SAC, batch 256, 2x256, one update per step); random steps,
compilation and evaluation are not counted. `update` times such updates on one batch that stays where it is: what a loop
that spends nothing on environment, replay and acting would reach. `on_policy` times PPO or PROPS on CartPole, in-graph,
with the settings of `on_policy.py`. `ailboost` times whole rounds of AILBoost (1 000 steps of a learner, 100
discriminator steps, 1 000 of training) when it has so many learners already. `replay` adds one transition of
HalfCheetah's size and samples a batch from a full ring: inside one scan, and as two donated calls from Python. `matmul`
is the machine's measured peak.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import agents
from offpolicy_jax import environments
from offpolicy_jax import replay as ring
from offpolicy_jax.training import compilation, host, in_graph
from offpolicy_jax.training import seeds as seed_axis
from offpolicy_jax.training.run_directory import provenance
from offpolicy_jax.transition import ArraySpec, EnvironmentSpec, example_transition

LEARNING_STARTS, WARMUP = 1_000, 500


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Environment steps per second of all seeds together, with an update after each."""
    seed_axis.use_cores(args.seeds)
    clock = compilation.Clock()
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(args.config).items()}
    config = agents.load(args.agent).Config(learning_starts=LEARNING_STARTS, replay_capacity=args.capacity, **changes)
    loop, carry = warmed_up(args.agent, args.env, config, args.seeds)
    before = time.perf_counter()
    loop.advance(carry, args.steps, bool)
    seconds = time.perf_counter() - before
    return {
        "agent": args.agent,
        "env": args.env,
        "seeds": args.seeds,
        "steps": args.steps * args.seeds,
        "seconds": seconds,
        "steps_per_second": args.steps * args.seeds / seconds,
        "compile_seconds": clock.seconds,
        "settings": {
            "batch_size": config.batch_size,
            "hidden_sizes": config.hidden_sizes,
            "capacity": args.capacity,
            **changes,
        },
    }


def warmed_up(agent: str, env: str, config: Any, seeds: int) -> tuple[Any, Any]:
    """The loop of so many seeds, and its carry after the random steps and the first updates."""
    environment = environments.make(env, seeds)
    kind = in_graph if environments.is_in_graph(environment) else host
    loop: Any = kind.Loop(agents.load(agent), environment, jax.tree.map(np.float32, config), seeds, 1)  # type: ignore[arg-type]
    carry = loop.start(seed_axis.keys(0, seeds), np.arange(seeds))
    return loop, loop.advance(loop.advance(carry, LEARNING_STARTS, bool), WARMUP, bool)


def update(args: argparse.Namespace) -> dict[str, Any]:
    """Gradient steps of SAC per second, in one call, on one batch of noise."""
    agent: Any = agents.load("sac")
    config, spec, key = agent.Config(), environments.make(args.env).spec, jax.random.key(0)
    config = jax.tree.map(np.float32, config)
    row = example_transition(spec)
    draws = np.random.default_rng(0)

    def noise(x):
        values = draws.normal(size=(config.batch_size, *x.shape))
        return jnp.asarray(values > 0.0 if x.dtype == bool else values, x.dtype)

    batch = jax.tree.map(noise, row)

    def steps(config, state, batch, count):
        step = lambda i, state: agent.gradient_step(config, state, batch, jax.random.fold_in(key, i))[0]  # noqa: E731
        return jax.lax.fori_loop(0, count, step, state)

    steps = jax.jit(steps, donate_argnums=1)
    state = jax.block_until_ready(steps(config, agent.init(config, spec, key), batch, WARMUP))
    before = time.perf_counter()
    jax.block_until_ready(steps(config, state, batch, args.steps))
    seconds = time.perf_counter() - before
    return {"env": args.env, "steps": args.steps, "seconds": seconds, "steps_per_second": args.steps / seconds}


def on_policy(args: argparse.Namespace) -> dict[str, Any]:
    """Environment steps per second of all seeds together, on CartPole."""
    from agents import ppo, props

    seed_axis.use_cores(args.seeds)
    config: Any = ppo.Config(
        learning_rate=2.5e-4,
        entropy_weight=0.01,
        target_kl=float("inf"),
        anneal_steps=args.steps,
        epochs=4,
        minibatches=4,
        rollout_length=128,
    )
    if args.agent == "props":
        config = props.Config(target=config.replace(buffer_batches=2), rollout_length=32)
    traced = jax.tree.map(np.float32, config)
    environment: Any = environments.make("phys2d/CartPole-v1")
    loop = in_graph.Loop(agents.load(args.agent), environment, traced, args.seeds, 4)
    clock = compilation.Clock()
    carry = loop.start(seed_axis.keys(0, args.seeds), np.arange(args.seeds))
    carry = loop.advance(carry, 20 * 512, bool)
    runs = []
    for _ in range(args.repeats):
        before = time.perf_counter()
        carry = loop.advance(carry, args.steps, bool)
        runs.append(time.perf_counter() - before)
    return {
        "agent": args.agent,
        "seeds": args.seeds,
        "steps": args.steps * args.seeds,
        "seconds": statistics.median(runs),
        "steps_per_second": args.steps * args.seeds / statistics.median(runs),
        "compile_seconds": clock.seconds,
        "settings": {"num_envs": 4, "repeats": args.repeats},
    }


def ailboost(args: argparse.Namespace) -> dict[str, Any]:
    """Environment steps per second of one seed over whole rounds, all of them counted, late in a run."""
    agent = agents.load("ailboost")
    learner = agents.load("sac").Config()
    config = agent.Config(
        sac=learner,
        max_learners=args.max_learners,
        learner_steps=args.period,
        training_steps=args.period,
        learning_starts=LEARNING_STARTS,
    )
    environment = environments.make(args.env)
    row = example_transition(environment.spec)
    expert = jax.tree.map(lambda x: np.ones((1_000, *x.shape), x.dtype), row)
    kind = in_graph if environments.is_in_graph(environment) else host
    traced = jax.tree.map(np.float32, config)
    loop: Any = kind.Loop(agent, environment, traced, 1, 1, demonstrations=expert)  # type: ignore[arg-type]
    carry = loop.start(seed_axis.keys(0, 1), np.arange(1))
    period = config.learner_steps + config.training_steps
    if args.learners > 1:  # as if they had been: what the ring and the snapshots hold does not matter to the time
        rows = min(args.learners * config.learner_steps, carry.learner.replay.rows)
        replay = dataclasses.replace(
            carry.learner.replay, size=jnp.int32(rows), position=jnp.int32(rows % carry.learner.replay.rows)
        )
        step = jnp.int32(LEARNING_STARTS + (args.learners - 1) * period + config.learner_steps)
        carry = dataclasses.replace(carry, learner=dataclasses.replace(carry.learner, replay=replay, step=step))
    carry = loop.advance(carry, 2 * period, bool)
    before = time.perf_counter()
    loop.advance(carry, args.rounds * period, bool)
    seconds = time.perf_counter() - before
    return {
        "env": args.env,
        "learners": args.learners,
        "steps": args.rounds * period,
        "seconds": seconds,
        "steps_per_second": args.rounds * period / seconds,
        "settings": {"max_learners": args.max_learners, "batch_size": learner.batch_size},
    }


def replay(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds for one add and one sample, by capacity and mode."""
    spec = EnvironmentSpec("x", ArraySpec((17,), np.dtype("float32")), ArraySpec((6,), np.dtype("float32")))
    row = jax.tree.map(lambda x: jnp.ones((1, 1, *x.shape), x.dtype), example_transition(spec))

    def add_and_sample(carry, key):
        buffer, total = carry
        buffer = ring.add(buffer, row)
        return (buffer, total + _sum(ring.sample(buffer, key, args.batch_size))), None

    def scan(buffer, keys):
        return jax.lax.scan(add_and_sample, (buffer, jnp.zeros(())), keys)[0]

    def read(buffer, key):
        return _sum(ring.sample(buffer, key, args.batch_size))

    add, read, scan = jax.jit(ring.add, donate_argnums=0), jax.jit(read), jax.jit(scan, donate_argnums=0)
    results, keys = [], jax.random.split(jax.random.key(0), args.steps)
    for capacity in args.capacities:
        start_mb = _resident_mb("VmRSS")
        buffer = ring.init(capacity, example_transition(spec))
        buffer = dataclasses.replace(buffer, size=jnp.asarray(capacity, jnp.int32))
        size_mb = sum(x.nbytes for x in jax.tree.leaves(buffer)) / 2**20
        times: dict[str, list[float]] = {"scan": [], "calls": []}
        loop_keys = list(keys[: args.loop_steps])
        for _ in range(1 + args.repeats):
            before = time.perf_counter()
            buffer, total = jax.block_until_ready(scan(buffer, keys))
            times["scan"].append((time.perf_counter() - before) / len(keys) * 1e3)
            before = time.perf_counter()
            for key in loop_keys:
                buffer = add(buffer, row)
                total = read(buffer, key)
            jax.block_until_ready(total)
            times["calls"].append((time.perf_counter() - before) / len(loop_keys) * 1e3)
        peak = _resident_mb("VmHWM") - start_mb
        for mode, each in times.items():
            results.append({"capacity": capacity, "mode": mode, "ms_per_step": statistics.median(each[1:])})
            results[-1] |= {"ring_mb": round(size_mb, 1), "peak_over_start_mb": round(peak, 1)}
        del buffer
    return {"results": results, "batch_size": args.batch_size}


def matmul(args: argparse.Namespace) -> dict[str, Any]:
    """Best float32 GFLOP/s over a few sizes of square products."""
    best = 0.0
    for n in (512, 1024, 2048):
        x = jax.random.normal(jax.random.key(0), (n, n))
        product = jax.jit(lambda x, w: jax.lax.fori_loop(0, 10, lambda _, y: (y @ w) * 0.01, x))
        product(x, x).block_until_ready()
        for _ in range(args.repeats):
            before = time.perf_counter()
            product(x, x).block_until_ready()
            best = max(best, 10 * 2 * n**3 / (time.perf_counter() - before) / 1e9)
    return {"gflops_per_second": best}


def sac_update_gflops(observation: int, action: int, hidden: int = 256, batch: int = 256) -> float:
    """Arithmetic of one SAC update (two critics, two hidden layers) in GFLOP: matrix products only."""
    critic = (observation + action) * hidden + hidden * hidden + hidden
    actor = observation * hidden + hidden * hidden + hidden * 2 * action
    target = actor + 2 * critic
    critics = 2 * (3 * critic - (observation + action) * hidden)  # no gradient with respect to the data
    to_action = critic - observation * hidden
    policy = 3 * actor - observation * hidden + 2 * (critic + to_action)
    return 2 * batch * (target + critics + policy) / 1e9


def _sum(tree: Any) -> jax.Array:
    """One number that needs every leaf, so that no gather can be dropped."""
    return sum((jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(tree)), jnp.zeros(()))


def _resident_mb(field: str) -> float:
    """VmHWM (peak) or VmRSS (now) of this process in MB, or 0 where there is no /proc."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def main() -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("train")
    sub.add_argument("--agent", default="sac")
    sub.add_argument("--config", default="{}", help="JSON of hyper-parameters that differ from the agent's defaults")
    sub.add_argument("--env", default="HalfCheetah-v5")
    sub.add_argument("--steps", type=int, default=3_000, help="timed steps per seed")
    sub.add_argument("--seeds", type=int, default=1)
    sub.add_argument("--capacity", type=int, default=1_000_000)
    sub = commands.add_parser("update")
    sub.add_argument("--env", default="HalfCheetah-v5")
    sub.add_argument("--steps", type=int, default=3_000)
    sub = commands.add_parser("on_policy")
    sub.add_argument("--agent", choices=("ppo", "props"), default="ppo")
    sub.add_argument("--steps", type=int, default=512 * 200, help="timed steps per seed and repeat")
    sub.add_argument("--seeds", type=int, default=8)
    sub.add_argument("--repeats", type=int, default=3, help="timed calls; the median counts")
    sub = commands.add_parser("ailboost")
    sub.add_argument("--env", default="phys2d/Pendulum-v0")
    sub.add_argument("--learners", type=int, default=1, help="learners before the clock starts")
    sub.add_argument("--max-learners", type=int, default=1_000)
    sub.add_argument("--period", type=int, default=1_000, help="steps of acting, and of training, in a round")
    sub.add_argument("--rounds", type=int, default=1)
    sub = commands.add_parser("replay")
    sub.add_argument("--steps", type=int, default=10_000)
    sub.add_argument("--loop-steps", type=int, default=2_000)
    sub.add_argument("--batch-size", type=int, default=256)
    sub.add_argument("--capacities", type=int, nargs="+", default=[10_000, 1_000_000])
    sub.add_argument("--repeats", type=int, default=3)
    sub = commands.add_parser("matmul")
    sub.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    measurements = {f.__name__: f for f in (train, update, on_policy, ailboost, replay, matmul)}
    result = measurements[args.command](args)
    memory = jax.local_devices()[0].memory_stats() or {}
    device_mb = memory.get("peak_bytes_in_use", 0) / 2**20
    result["peak_memory_mb"] = round(device_mb or _resident_mb("VmHWM"), 1)
    print(json.dumps({**result, **provenance()}), file=sys.stdout)


if __name__ == "__main__":
    main()
