"""Speed of public peers, each measured alone in its own process: one command, one JSON line.

`throughput.py` starts this file with the interpreter named by `--peers-python`, so that the peers' dependencies stay
out of the environment of `offpolicy_jax`. It imports nothing from `offpolicy_jax` and also runs by hand:

    python -m venv peers
    peers/bin/pip install "torch>=2.8"        # the CPU build of torch suffices, and is much smaller
    peers/bin/pip install "sbx-rl==0.28.0" "stable-baselines3==2.9.2" "gymnasium[mujoco]>=1.1" "mujoco>=3.17,<4"
    peers/bin/pip install "rejax==0.1.3" "gymnax==0.0.9" "flashbax==0.1.3"
    peers/bin/python experiments/benchmarks/peers.py sbx_sac --steps 10000

One environment holds all of them (checked: Python 3.11, jax 0.10.2, flax 0.12.8, optax 0.2.8, distrax 0.1.9,
tfp-nightly, gymnasium 1.4.0, mujoco 3.17.0, torch 2.13.0, numpy 2.4.6). rejax 0.1.3 must have gymnax 0.0.9: it does
not work with gymnax 1.x. sbx-rl 0.28.0 asks for jax < 0.12. For a fair comparison install the jax version of the
environment that `throughput.py` runs in.

What is measured
    sbx_sac, sb3_sac    HalfCheetah-v5, one update per environment step. The clock starts `--warmup` updates after the
                        warm-up with random actions, when everything is compiled, and stops `--steps` steps later.
                        With `--returns PATH`, `--steps` is the whole training run, the greedy policy is evaluated
                        every `--eval-every` steps and the CSV has the columns step,seed,return (a mean over
                        episodes); the time of the evaluations is not counted.
    rejax_sac           gymnax Pendulum-v1, the whole loop in one compiled call of `--steps` environment steps per
                        seed, each with an update. Filling the buffer and compiling are not counted. Its sampling
                        costs O(capacity), so `--buffer-size` matters: always report it.
    rejax_ppo           PPO on gymnax CartPole-v1 for `--seeds` vmapped agents of 4 environments: one compiled call of
    purejaxrl_ppo       `--steps` environment steps per seed, no evaluations. purejaxrl is not a package: `--checkout`
                        names a clone of github.com/luchris429/purejaxrl. Its wrappers import brax and navix, which
                        CartPole does not need: they are replaced by empty modules. It wants distrax and gymnax 0.0.9.
    flashbax_item       add one transition of HalfCheetah's size, then sample a batch, from a full buffer. Three
                        modes: `scan` (inside one donated jitted scan), `fused` (a Python loop over one donated
                        jitted add-and-sample), `calls` (a Python loop over a donated add and a separate sample).

The last line on standard output is the result: peer, version, steps, seconds, steps_per_second, compile_seconds,
peak_memory_mb, settings and what else the peer has to say. `peak_memory_mb` is the process's resident peak. NumPy
replay buffers (SBX, SB3) occupy memory only as they are written: `settings.replay_mb` is their full size.
"""
# The peers are not installed where the type checker runs.
# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

PEERS = ("sbx_sac", "sb3_sac", "rejax_sac", "rejax_ppo", "purejaxrl_ppo", "flashbax_item")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "gymnasium", "mujoco", "gymnax")


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory_mb(field: str = "VmHWM") -> float:
    """Resident memory of this process in MB (2**20 bytes): `VmHWM` is the peak, `VmRSS` the present.

    The peak is read from /proc where there is one: `ru_maxrss` of a child process also counts its parent's memory.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    scale = 2**20 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 1)


def limit_threads(threads: int | None) -> None:
    """Cap the threads of torch, NumPy and XLA's CPU client; call before any of them is imported."""
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
            os.environ[name] = str(threads)


# ------------------------------------------------------------------------------------- SBX and Stable-Baselines3


class Clock:
    """Wall time from the end of warm-up to the end of the run, without the evaluations."""

    def __init__(self, learning_starts: int, start_step: int, stop_step: int):
        """Take the last random step, the first timed step and the last one."""
        self.learning_starts, self.start_step, self.stop_step = learning_starts, start_step, stop_step
        self.stamps: dict[int, float] = {}
        self.paused = 0.0

    def tick(self, step: int) -> None:
        """Note the time where `step` opens or closes an interval."""
        if step in (self.learning_starts, self.start_step, self.stop_step):
            self.stamps[step] = time.perf_counter() - self.paused

    def exclude(self, seconds: float) -> None:
        """Leave out `seconds` that were spent outside training."""
        self.paused += seconds

    def read(self) -> tuple[int, float | None, float | None]:
        """Timed steps, their seconds, and the seconds that the first updates took beyond the steady pace."""
        if self.start_step >= self.stop_step or len(self.stamps) < 3:
            return 0, None, None
        steps = self.stop_step - self.start_step
        seconds = self.stamps[self.stop_step] - self.stamps[self.start_step]
        warmup = self.stamps[self.start_step] - self.stamps[self.learning_starts]
        return steps, seconds, warmup - (self.start_step - self.learning_starts) * seconds / steps


def evaluate_greedy(model: Any, env: str, episodes: int, seed: int) -> float:
    """Mean undiscounted return of the deterministic policy over the first episode of `episodes` environments."""
    import gymnasium
    import numpy as np

    envs = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(env) for _ in range(episodes)])
    observation, _ = envs.reset(seed=seed)
    returns, alive = np.zeros(episodes), np.ones(episodes, bool)
    while alive.any():
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = envs.step(action)
        returns += reward * alive
        alive &= ~(terminated | truncated)
    envs.close()
    return float(returns.mean())


def stable_baselines(args: argparse.Namespace) -> dict[str, Any]:
    """SAC of SBX or Stable-Baselines3 on a Gymnasium environment."""
    if args.peer == "sbx_sac":
        from sbx import SAC
    else:
        from stable_baselines3 import SAC
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    learning_starts = args.learning_starts
    if learning_starts is None:
        learning_starts = 10_000 if args.returns else 1_000
    start_step = learning_starts + args.warmup
    total_steps = args.steps if args.returns else start_step + args.steps
    settings = {
        "learning_rate": 3e-4,
        "buffer_size": args.buffer_size,
        "learning_starts": learning_starts,
        "batch_size": args.batch_size,
        "tau": 0.005,
        "gamma": 0.99,
        "train_freq": 1,
        "gradient_steps": 1,
        "device": args.device,
        "seed": args.seed,
        "verbose": 0,
    }
    model = SAC("MlpPolicy", args.env, policy_kwargs={"net_arch": [256, 256]}, **settings)
    clock = Clock(learning_starts, start_step, total_steps)
    evaluations: list[tuple[int, float]] = []
    table = None
    if args.returns:
        args.returns.parent.mkdir(parents=True, exist_ok=True)
        table = args.returns.open("w", newline="")
        csv.writer(table).writerow(["step", "seed", "return"])

    def on_step(_locals: dict, _globals: dict) -> bool:
        step = model.num_timesteps
        clock.tick(step)
        if table is not None and step % args.eval_every == 0:
            start = time.perf_counter()
            value = evaluate_greedy(model, args.env, args.eval_episodes, args.eval_seed)
            evaluations.append((step, value))
            csv.writer(table).writerow([step, args.seed, value])
            table.flush()
            print(f"step {step}: return {value:.1f}", file=sys.stderr, flush=True)
            clock.exclude(time.perf_counter() - start)
        return True

    model.learn(total_timesteps=total_steps, callback=on_step, progress_bar=False)
    if table is not None:
        table.close()
    steps, seconds, compile_seconds = clock.read()
    buffer = model.replay_buffer
    arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones)
    result = {
        "steps": steps,
        "seconds": seconds,
        "compile_seconds": compile_seconds if args.peer == "sbx_sac" else None,
        "settings": {
            **settings,
            "net_arch": [256, 256],
            "env": args.env,
            "total_steps": total_steps,
            "warmup_updates": args.warmup,
            "replay_mb": round(sum(array.nbytes for array in arrays) / 2**20, 1),
            "torch_threads": torch.get_num_threads(),
        },
    }
    if evaluations:
        result["final_return"] = evaluations[-1][1]
        result["settings"] |= {"eval_episodes": args.eval_episodes, "eval_seed": args.eval_seed}
    return result


# ----------------------------------------------------------------------------------------------------------- rejax


def rejax_sac(args: argparse.Namespace) -> dict[str, Any]:
    """rejax's SAC with everything in one compiled call, for one seed or several vmapped ones."""
    import jax
    import jax.numpy as jnp
    from rejax import SAC

    warmup_steps = args.learning_starts + args.warmup
    settings = {
        "num_envs": 1,
        "num_epochs": 1,
        "batch_size": args.batch_size,
        "buffer_size": args.buffer_size,
        "fill_buffer": args.learning_starts,
        "learning_rate": 3e-4,
        "polyak": 0.995,
        "gamma": 0.99,
        "skip_initial_evaluation": True,
    }
    # rejax reads the sizes here: inside `agent_kwargs` they are replaced by 64 x 64 without a word.
    algorithm = SAC.create(env=args.env, hidden_layer_sizes=(256, 256), **settings)
    algorithm = algorithm.replace(eval_callback=lambda *_: jnp.zeros(()))

    def trainer(steps: int):
        part = algorithm.replace(total_timesteps=steps, eval_freq=steps)

        def train(state):
            return part.train(train_state=state)[0]

        return jax.jit(train if args.seeds == 1 else jax.vmap(train))

    def kernels(tree: Any) -> list[list[int]]:
        return [list(leaf.shape[-2:]) for leaf in jax.tree.leaves(tree) if leaf.ndim == (2 if args.seeds == 1 else 3)]

    keys = jax.random.split(jax.random.PRNGKey(args.seed), args.seeds)
    init = jax.jit(algorithm.init_state if args.seeds == 1 else jax.vmap(algorithm.init_state))
    state = init(keys[0] if args.seeds == 1 else keys)
    state = jax.block_until_ready(trainer(warmup_steps)(state))

    start = time.perf_counter()
    train = trainer(args.steps).lower(state).compile()
    compile_seconds = time.perf_counter() - start
    runs = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        state = jax.block_until_ready(train(state))
        runs.append(time.perf_counter() - start)
    return {
        "steps": args.steps * args.seeds,
        "seconds": statistics.median(runs),
        "runs": [round(seconds, 4) for seconds in runs],
        "compile_seconds": compile_seconds,
        "finite": all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.actor_ts.params)),
        "settings": {
            **settings,
            "kernels": kernels(state.actor_ts.params["params"]["features"]),
            "env": args.env,
            "seed": args.seed,
            "seeds": args.seeds,
            "steps_per_seed": args.steps,
            "warmup_steps": warmup_steps,
            "repeats": args.repeats,
            "device": jax.devices()[0].device_kind,
        },
    }


def rejax_ppo(args: argparse.Namespace) -> dict[str, Any]:
    """rejax's PPO, for several vmapped seeds. Its learning rate is constant, and actor and critic step apart."""
    import jax
    import jax.numpy as jnp
    from rejax import PPO

    settings = {
        "num_envs": 4,
        "num_steps": 128,
        "num_epochs": 4,
        "num_minibatches": 4,
        "learning_rate": 2.5e-4,
        "max_grad_norm": 0.5,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.01,
        "skip_initial_evaluation": True,
    }
    agent = {"activation": "tanh", "hidden_layer_sizes": (64, 64)}
    algorithm = PPO.create(env="CartPole-v1", agent_kwargs=agent, **settings)
    algorithm = algorithm.replace(eval_callback=lambda *_: jnp.zeros(()), total_timesteps=args.steps)
    algorithm = algorithm.replace(eval_freq=args.steps)
    keys = jax.random.split(jax.random.PRNGKey(args.seed), args.seeds)
    state = jax.jit(jax.vmap(algorithm.init_state))(keys)
    kernels = [list(leaf.shape[1:]) for leaf in jax.tree.leaves(state.actor_ts.params) if leaf.ndim == 3]
    return timed_calls(lambda s: 2 * (algorithm.train(train_state=s)[0],), state, args) | {
        "settings": {**settings, **agent, "kernels": kernels, "seeds": args.seeds, "repeats": args.repeats}
    }


def purejaxrl_ppo(args: argparse.Namespace) -> dict[str, Any]:
    """purejaxrl's PPO, for several vmapped seeds: every call trains from the start."""
    import types

    import jax

    for name in ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["brax"].envs = sys.modules["brax.envs"]
    for wrapper in ("EpisodeWrapper", "AutoResetWrapper"):
        setattr(sys.modules["brax.envs.wrappers.training"], wrapper, None)
    # Its first weights come from batched QR decompositions, which hang XLA's CPU backend now and then (jaxlib 0.10.2):
    # seed by seed they are the same numbers, and no part of what takes time.
    from flax.linen import initializers

    orthogonal = initializers.orthogonal
    initializers.orthogonal = lambda *gain: (
        lambda key, shape, dtype: jax.custom_batching.sequential_vmap(lambda k: orthogonal(*gain)(k, shape, dtype))(key)
    )
    sys.path.insert(0, str(args.checkout / "purejaxrl"))
    from ppo import make_train

    settings = {
        "LR": 2.5e-4,
        "NUM_ENVS": 4,
        "NUM_STEPS": 128,
        "TOTAL_TIMESTEPS": args.steps,
        "UPDATE_EPOCHS": 4,
        "NUM_MINIBATCHES": 4,
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
        "ENV_NAME": "CartPole-v1",
        "ANNEAL_LR": True,
        "DEBUG": False,
    }
    train = make_train(dict(settings))
    keys = jax.random.split(jax.random.PRNGKey(args.seed), args.seeds)

    def again(keys: Any) -> Any:
        runner = train(keys)["runner_state"]  # returned whole: else the compiler drops the training
        return runner[-1], runner

    return timed_calls(again, keys, args) | {"settings": {**settings, "seeds": args.seeds, "repeats": args.repeats}}


def timed_calls(train: Any, state: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of `--repeats` calls of the vmapped, compiled function, each on what the last one left."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(jax.vmap(train)).lower(state).compile()
    compile_seconds = time.perf_counter() - start
    runs = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state))
        runs.append(time.perf_counter() - start)
    return {
        "steps": args.steps * args.seeds,
        "seconds": statistics.median(runs),
        "runs": [round(seconds, 4) for seconds in runs],
        "compile_seconds": compile_seconds,
    }


# -------------------------------------------------------------------------------------------------------- flashbax


def flashbax_item(args: argparse.Namespace) -> dict[str, Any]:
    """flashbax's item buffer: add one transition, then sample a batch, in three ways and at several capacities."""
    import flashbax
    import jax
    import jax.numpy as jnp
    import numpy as np

    sizes = {"observation": (17,), "action": (6,), "reward": (), "terminated": (), "next_observation": (17,)}
    numpy_rng = np.random.default_rng(args.seed)

    def transitions(*lead: int) -> dict[str, np.ndarray]:
        return {name: numpy_rng.standard_normal((*lead, *size), np.float32) for name, size in sizes.items()}

    # The Python loops take fewer steps than the scan: a version that copied the buffer would take minutes.
    example = jax.tree.map(jnp.zeros_like, transitions())
    stream = jax.device_put(transitions(args.steps))
    loop_steps = min(args.steps, args.loop_steps)
    items = [transitions() for _ in range(loop_steps)]
    keys = jax.random.split(jax.random.key(args.seed), args.steps)
    loop_keys = list(keys[:loop_steps])

    def consume(batch: Any) -> jax.Array:
        """A number that needs every sampled value, so that the compiler cannot drop a part of the gather."""
        return sum((leaf.sum() for leaf in jax.tree.leaves(batch)), start=jnp.zeros(()))

    def measure(capacity: int) -> list[dict[str, Any]]:
        before_mb = memory_mb("VmRSS")
        buffer = flashbax.make_item_buffer(capacity, min_length=args.batch_size, sample_batch_size=args.batch_size)
        state = jax.jit(buffer.init)(example)
        # Every slot counts as written, so that samples come from all of the buffer's memory.
        state = jax.block_until_ready(state.replace(is_full=jnp.ones_like(state.is_full)))
        ring_mb = sum(leaf.nbytes for leaf in jax.tree.leaves(state.experience)) / 2**20

        def step(state, inputs):
            item, key = inputs
            state = buffer.add(state, item)
            return state, consume(buffer.sample(state, key).experience)

        def scan(state, stream, keys):
            return jax.lax.scan(step, state, (stream, keys))

        start = time.perf_counter()
        compiled_scan = jax.jit(scan, donate_argnums=0).lower(state, stream, keys).compile()
        compile_seconds = time.perf_counter() - start
        fused = jax.jit(step, donate_argnums=0)
        add = jax.jit(buffer.add, donate_argnums=0)
        sample = jax.jit(buffer.sample)

        def run_scan(state):
            return compiled_scan(state, stream, keys)

        def run_fused(state):
            value = None
            for item, key in zip(items, loop_keys, strict=True):
                state, value = fused(state, (item, key))
            return state, value

        def run_calls(state):
            batch = None
            for item, key in zip(items, loop_keys, strict=True):
                state = add(state, item)
                batch = sample(state, key)
            return state, batch

        rows = []
        modes = (("scan", run_scan, args.steps), ("fused", run_fused, loop_steps), ("calls", run_calls, loop_steps))
        for mode, run, steps in modes:
            runs = []
            for repeat in range(args.repeats + 1):
                start = time.perf_counter()
                state, _ = jax.block_until_ready(run(state))
                if repeat > 0:  # the first one compiles
                    runs.append((time.perf_counter() - start) / steps * 1e3)
            row = {
                "capacity": capacity,
                "mode": mode,
                "steps": steps,
                "ms_per_step": round(statistics.median(runs), 5),
                "runs_ms": [round(ms, 5) for ms in runs],
                "compile_seconds": round(compile_seconds, 3) if mode == "scan" else None,
                "ring_mb": round(ring_mb, 1),
                "peak_over_start_mb": round(memory_mb() - before_mb, 1),
            }
            print(f"capacity {capacity} {mode}: {row['ms_per_step']:.4f} ms", file=sys.stderr, flush=True)
            rows.append(row)
        return rows

    # Smallest first: the process's peak memory only ever grows.
    rows = [row for capacity in sorted(args.capacities) for row in measure(capacity)]
    headline = [row for row in rows if row["mode"] == "scan"][-1]
    return {
        "steps": args.steps,
        "seconds": headline["ms_per_step"] * args.steps / 1e3,
        "compile_seconds": headline["compile_seconds"],
        "results": rows,
        "settings": {
            "capacities": sorted(args.capacities),
            "batch_size": args.batch_size,
            "transition": {name: list(size) for name, size in sizes.items()},
            "repeats": args.repeats,
            "loop_steps": loop_steps,
            "replay_mb": headline["ring_mb"],
            "device": jax.devices()[0].device_kind,
        },
    }


# ---------------------------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    """Parse a positive integer; 1_000 and 1e6 are fine."""
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(value)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure one public peer and print one JSON line.")
    peers = parser.add_subparsers(dest="peer", required=True, metavar="|".join(PEERS))
    for name in PEERS:
        sub = peers.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument("--steps", type=positive, default=10_000, help="timed steps (per seed)")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--batch-size", type=positive, default=256)
        sub.add_argument("--threads", type=positive, help="cap on CPU threads; the peer's own default if left out")
        sub.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        if name in ("sbx_sac", "sb3_sac"):
            sub.add_argument("--env", default="HalfCheetah-v5")
            sub.add_argument("--buffer-size", type=positive, default=1_000_000)
            sub.add_argument("--learning-starts", type=positive, help="1000, or 10000 with --returns")
            sub.add_argument("--warmup", type=positive, default=500, help="updates before the clock starts")
            sub.add_argument("--returns", type=Path, help="train for --steps, evaluate, and write this CSV")
            sub.add_argument("--eval-every", type=positive, default=5_000)
            sub.add_argument("--eval-episodes", type=positive, default=10)
            sub.add_argument("--eval-seed", type=int, default=10_000)
        elif name == "rejax_sac":
            sub.add_argument("--env", default="Pendulum-v1")
            sub.add_argument("--buffer-size", type=positive, default=100_000)
            sub.add_argument("--learning-starts", type=positive, default=1_000)
            sub.add_argument("--warmup", type=positive, default=100, help="updates before the clock starts")
            sub.add_argument("--seeds", type=positive, default=1, help="agents trained at once, vmapped")
            sub.add_argument("--repeats", type=positive, default=1, help="timed calls; the median counts")
        elif name in ("rejax_ppo", "purejaxrl_ppo"):
            sub.add_argument("--seeds", type=positive, default=8, help="agents trained at once, vmapped")
            sub.add_argument("--repeats", type=positive, default=3, help="timed calls; the median counts")
            if name == "purejaxrl_ppo":
                sub.add_argument("--checkout", type=Path, required=True, help="a clone of the repository")
        else:
            sub.add_argument("--capacities", type=positive, nargs="+", default=[10_000, 1_000_000])
            sub.add_argument("--loop-steps", type=positive, default=2_000, help="steps of the Python loops")
            sub.add_argument("--repeats", type=positive, default=3, help="timed passes; the median counts")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure one peer and print its JSON line."""
    args = parse(argv)
    limit_threads(args.threads)
    os.environ["JAX_PLATFORMS"] = args.device
    package, measure = {
        "sbx_sac": ("sbx-rl", stable_baselines),
        "sb3_sac": ("stable-baselines3", stable_baselines),
        "rejax_sac": ("rejax", rejax_sac),
        "rejax_ppo": ("rejax", rejax_ppo),
        "purejaxrl_ppo": ("gymnax", purejaxrl_ppo),
        "flashbax_item": ("flashbax", flashbax_item),
    }[args.peer]
    version = installed_version(package)
    if version is None:
        raise SystemExit(f"{package} is not installed for {sys.executable}; see the head of {Path(__file__).name}")
    result = {"peer": args.peer, "version": version, **measure(args)}
    settings = result.pop("settings") | {"threads": args.threads}
    seconds = result["seconds"]
    result["steps_per_second"] = None if seconds is None else round(result["steps"] / seconds, 2)
    for name in ("seconds", "compile_seconds"):
        result[name] = None if result[name] is None else round(result[name], 4)
    versions = {name: installed_version(name) for name in PACKAGES}
    result |= {
        "peak_memory_mb": memory_mb(),
        "versions": {"python": platform.python_version()} | {name: v for name, v in versions.items() if v},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "settings": settings,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
