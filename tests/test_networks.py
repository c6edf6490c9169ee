"""Networks: what they compute from their parameters, how they read observations, how they start."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import networks
from offpolicy_jax.networks import MLP, CategoricalPolicy, Critics, MixturePolicy, StackedDense, TanhNormalPolicy
from offpolicy_jax.transition import ArraySpec

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
VECTOR = ArraySpec((3,), np.dtype(np.float32))
ENCODER = networks.encoder(VECTOR)


def array(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def init(module, *inputs):
    return jax.jit(module.init)(KEY, *inputs)


def random_params(module, *inputs):
    """Parameters of the module with every array random, biases included."""
    return jax.tree.map(lambda x: jnp.asarray(array(*x.shape)), jax.eval_shape(module.init, KEY, *inputs))


@pytest.mark.parametrize("shared", [True, False])
def test_stacked_dense_is_separate_dense_layers(shared):
    layer = StackedDense(3, 5, networks.initializer("glorot_uniform"))
    x = array(7, 4) if shared else array(3, 7, 4)
    params = random_params(layer, x)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"].reshape(3, 5)
    out = layer.apply(params, x)
    assert out.shape == (3, 7, 5)
    for i in range(3):
        np.testing.assert_allclose(out[i], (x if shared else x[i]) @ kernel[i] + bias[i], rtol=1e-4, atol=1e-5)


def test_critics_are_separate_networks():
    critics = Critics(ENCODER, (6, 5), num=3)
    observation, action = array(7, 3), array(7, 2)
    params = random_params(critics, observation, action)
    q = critics.apply(params, observation, action)
    assert q.shape == (3, 7)
    layers = [params["params"][f"StackedDense_{i}"] for i in range(3)]
    for i in range(3):
        x = np.concatenate([observation, action], 1)
        for number, layer in enumerate(layers):
            x = x @ layer["kernel"][i] + layer["bias"][i, 0]
            x = x if number == 2 else np.maximum(x, 0.0)
        np.testing.assert_allclose(q[i], x[:, 0], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_one_critic_stays_in_its_slice():
    critics = Critics(ENCODER, (6,), num=3)
    observation, action = array(7, 3), array(7, 2)
    params = random_params(critics, observation, action)
    gradients = jax.grad(lambda p: jnp.sum(critics.apply(p, observation, action)[1]))(params)
    for leaf in jax.tree.leaves(gradients):
        assert np.any(leaf[1] != 0.0)
        np.testing.assert_array_equal(leaf[jnp.array([0, 2])], 0.0)


@pytest.mark.parametrize("kernel_init", ["glorot_uniform", "lecun_uniform", "orthogonal"])
def test_ensemble_members_start_differently(kernel_init):
    critics = Critics(ENCODER, (6,), num=3, kernel_init=kernel_init)
    q = critics.apply(init(critics, array(1, 3), array(1, 2)), array(1, 3), array(1, 2))
    assert len(np.unique(q)) == 3


@pytest.mark.parametrize(
    ("num", "outputs", "shape"), [(2, 0, (2, 7)), (1, 0, (1, 7)), (2, 4, (2, 7, 4)), (2, 1, (2, 7, 1))]
)
def test_shapes_of_critics_of_observations_alone(num, outputs, shape):
    critics = Critics(ENCODER, (6,), num=num, outputs=outputs)
    apply = lambda x: critics.apply(critics.init(KEY, x[:1]), x)  # noqa: E731
    assert jax.eval_shape(apply, array(7, 3)).shape == shape


def test_mlp_has_a_relu_after_every_layer():
    mlp = MLP((6, 5))
    x = array(7, 4)
    params = random_params(mlp, x)
    expected = x
    for i in range(2):
        layer = params["params"][f"Dense_{i}"]
        expected = np.maximum(expected @ layer["kernel"] + layer["bias"], 0.0)
    np.testing.assert_allclose(mlp.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_flatten_keeps_the_order_of_leaves():
    spec = {"b": ArraySpec((2,), np.dtype(np.float32)), "a": ArraySpec((), np.dtype(np.float32))}
    observation = {"b": array(5, 2), "a": array(5)}
    flat = networks.flatten(networks.encoder(spec), observation)
    np.testing.assert_array_equal(flat, np.concatenate([observation["a"][:, None], observation["b"]], 1))


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_flatten_reads_integers_as_one_hot_and_bytes_as_fractions(batch):
    spec = (
        ArraySpec((), np.dtype(np.int32), num_values=4),
        ArraySpec((2,), np.dtype(np.int32), num_values=3),
        ArraySpec((2, 3), np.dtype(np.uint8)),
    )
    observation = (
        RNG.integers(0, 4, batch).astype(np.int32),
        RNG.integers(0, 3, (*batch, 2)).astype(np.int32),
        RNG.integers(0, 256, (*batch, 2, 3)).astype(np.uint8),
    )
    flat = networks.flatten(networks.encoder(spec), jax.tree.map(jnp.asarray, observation))
    assert flat.dtype == jnp.float32
    assert flat.shape == (*batch, sum(s.width for s in spec)) == (*batch, 4 + 6 + 6)
    expected = [
        np.eye(4)[observation[0]],
        np.eye(3)[observation[1]].reshape(*batch, 6),
        observation[2].reshape(*batch, 6) / 255.0,
    ]
    np.testing.assert_allclose(flat, np.concatenate(expected, -1), rtol=1e-6)


def test_flatten_refuses_an_observation_with_other_leaves():
    with pytest.raises(ValueError):
        networks.flatten(ENCODER, (array(5, 3), array(5, 3)))


def test_networks_of_a_dict_of_observations_are_those_of_the_joined_vector():
    spec = {"position": ArraySpec((2,), np.dtype(np.float32)), "velocity": ArraySpec((1,), np.dtype(np.float32))}
    apart, joined = networks.encoder(spec), ENCODER
    observation = array(7, 3)
    parts = {"position": observation[:, :2], "velocity": observation[:, 2:]}
    for build, actions in [
        (lambda e: Critics(e, (6,)), (array(7, 2),)),
        (lambda e: TanhNormalPolicy(e, (6,), 2), ()),
        (lambda e: MixturePolicy(e, (6,), 2, 3, gate_hidden_sizes=(4,)), ()),
        (lambda e: CategoricalPolicy(e, (6,), 4), ()),
    ]:
        of_parts, of_vector = build(apart), build(joined)
        params = random_params(of_parts, parts, *actions)
        shapes = jax.eval_shape(of_vector.init, KEY, observation, *actions)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        out, expected = of_parts.apply(params, parts, *actions), of_vector.apply(params, observation, *actions)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), out, expected)


def test_log_std_is_clipped():
    policy = TanhNormalPolicy(ENCODER, (6,), 2, log_std_min=-5.0, log_std_max=1.0)
    params = init(policy, array(1, 3))
    for shift, expected in [(100.0, 1.0), (-100.0, -5.0)]:
        head = params["params"]["Dense_0"]
        moved = {"params": {**params["params"], "Dense_0": {**head, "bias": head["bias"] + shift}}}
        distribution = policy.apply(moved, array(7, 3))
        np.testing.assert_array_equal(distribution.log_std, np.full((7, 2), expected, np.float32))
        assert np.all(np.abs(distribution.mean - shift) < 50.0)  # the mean is not


def test_default_bounds_of_log_std_are_the_paper_s():
    policy = TanhNormalPolicy(ENCODER, (6,), 2)
    assert (policy.log_std_min, policy.log_std_max) == (-20.0, 2.0)


def kernel_of(num, inputs, outputs, name):
    layer = StackedDense(num, outputs, networks.initializer(name, np.sqrt(2.0)))
    return np.asarray(init(layer, array(1, inputs))["params"]["kernel"])


@pytest.mark.parametrize(("inputs", "outputs"), [(20, 8), (8, 20)])
def test_orthogonal_start_of_each_member(inputs, outputs):
    for kernel in kernel_of(3, inputs, outputs, "orthogonal"):
        product = kernel.T @ kernel if inputs > outputs else kernel @ kernel.T
        np.testing.assert_allclose(product, 2.0 * np.eye(8), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "limit"), [("glorot_uniform", np.sqrt(6.0 / (50 + 200))), ("lecun_uniform", np.sqrt(3.0 / 50))]
)
def test_uniform_start_of_each_member(name, limit):
    for kernel in kernel_of(3, 50, 200, name):
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3.0), rtol=0.03)
        np.testing.assert_allclose(kernel.mean(), 0.0, atol=0.03 * limit)


def test_orthogonal_networks_have_gain_root_two_in_hidden_layers_and_one_in_the_last():
    critics = Critics(ENCODER, (16, 16), kernel_init="orthogonal")
    layers = init(critics, array(1, 3), array(1, 2))["params"]
    for name, gain in [("StackedDense_0", 2.0), ("StackedDense_1", 2.0), ("StackedDense_2", 1.0)]:
        for kernel in layers[name]["kernel"]:
            small = kernel @ kernel.T if kernel.shape[0] < kernel.shape[1] else kernel.T @ kernel
            np.testing.assert_allclose(np.diag(small), gain, rtol=1e-3)
        np.testing.assert_array_equal(layers[name]["bias"], 0.0)
    policy = TanhNormalPolicy(ENCODER, (16,), 2, kernel_init="orthogonal")
    head = init(policy, array(1, 3))["params"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(head.T @ head, np.eye(4), atol=1e-4)


def test_unknown_initialiser_raises():
    with pytest.raises(ValueError, match="he_magic"):
        networks.initializer("he_magic")


def gelu(x):
    """x times the probability that a standard normal variable is below it, in float64."""
    x = np.asarray(x, np.float64)
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def dense(layer, x):
    return np.asarray(x, np.float64) @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6.0, 6.0, 241, dtype=np.float32)
    np.testing.assert_allclose(networks.activate("gelu", x), gelu(x), rtol=1e-4, atol=1e-6)
    tanh_form = 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    assert np.max(np.abs(tanh_form - gelu(x))) > 1e-4  # the approximation would show
    np.testing.assert_array_equal(networks.activate("relu", x), np.maximum(x, 0.0))


def test_gelu_networks_equal_numpy():
    observation, action = array(7, 3), array(7, 2)

    mlp = MLP((6, 5), activation="gelu")
    params = random_params(mlp, observation)
    expected = observation
    for i in range(2):
        expected = gelu(dense(params["params"][f"Dense_{i}"], expected))
    np.testing.assert_allclose(mlp.apply(params, observation), expected, rtol=1e-4, atol=1e-5)

    critics = Critics(ENCODER, (6, 5), num=2, activation="gelu")
    params = random_params(critics, observation, action)
    for i, q in enumerate(critics.apply(params, observation, action)):
        x = np.concatenate([observation, action], 1)
        for number in range(3):
            layer = jax.tree.map(lambda p, i=i: p[i], params["params"][f"StackedDense_{number}"])
            x = dense(layer, x) if number == 2 else gelu(dense(layer, x))
        np.testing.assert_allclose(q, x[:, 0], rtol=1e-4, atol=1e-5)

    policy = TanhNormalPolicy(ENCODER, (6,), 2, activation="gelu")
    params = random_params(policy, observation)
    head = dense(params["params"]["Dense_0"], gelu(dense(params["params"]["MLP_0"]["Dense_0"], observation)))
    out = policy.apply(params, observation)
    np.testing.assert_allclose(out.mean, head[:, :2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.log_std, np.clip(head[:, 2:], -20.0, 2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("gate_hidden_sizes", [(), (4,), (4, 7)])
def test_mixture_policy_equals_numpy(activation, gate_hidden_sizes):
    """Experts on a common torso; the gate on the observation itself."""
    policy = MixturePolicy(ENCODER, (6, 5), 2, 3, gate_hidden_sizes, activation=activation)
    observation = array(7, 3)
    params = random_params(policy, observation)
    nonlinear = gelu if activation == "gelu" else lambda x: np.maximum(x, 0.0)
    layers = params["params"]
    torso, gate = observation, observation
    for i in range(2):
        torso = nonlinear(dense(layers["MLP_0"][f"Dense_{i}"], torso))
    for i, size in enumerate(gate_hidden_sizes):
        gate = nonlinear(dense(layers["gate_torso"][f"Dense_{i}"], gate))
        assert gate.shape == (7, size)
    assert ("gate_torso" in layers) == bool(gate_hidden_sizes)
    head = dense(layers["Dense_0"], torso)
    mixture = policy.apply(params, observation).pre_tanh
    assert (mixture.logits.shape, mixture.mean.shape, mixture.log_std.shape) == ((7, 3), (7, 3, 2), (7, 3, 2))
    np.testing.assert_allclose(mixture.logits, dense(layers["gate"], gate), rtol=1e-4, atol=1e-5)
    for k in range(3):
        own = head[:, 4 * k : 4 * (k + 1)]  # an expert's mean and log standard deviation lie side by side
        np.testing.assert_allclose(mixture.mean[:, k], own[:, :2], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mixture.log_std[:, k], np.clip(own[:, 2:], -20.0, 2.0), rtol=1e-4, atol=1e-5)


def test_mixture_policy_without_batch_axes_and_with_two():
    policy = MixturePolicy(ENCODER, (6,), 2, 3, (4,))
    params, observation = random_params(policy, array(1, 3)), array(2, 5, 3)
    out = policy.apply(params, observation).pre_tanh
    alone = policy.apply(params, observation[1, 2]).pre_tanh
    assert (out.logits.shape, out.mean.shape) == ((2, 5, 3), (2, 5, 3, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1, 2], b, rtol=1e-4, atol=1e-5), out, alone)


def test_mixture_policy_of_one_expert_is_the_gaussian_policy():
    observation = array(7, 3)
    gaussian, mixture = TanhNormalPolicy(ENCODER, (6, 5), 2), MixturePolicy(ENCODER, (6, 5), 2, 1)
    params = random_params(gaussian, observation)
    gate = init(mixture, observation)["params"]["gate"]
    out = mixture.apply({"params": {**params["params"], "gate": gate}}, observation).pre_tanh
    expected = gaussian.apply(params, observation)
    np.testing.assert_array_equal(out.mean[:, 0], expected.mean)
    np.testing.assert_array_equal(out.log_std[:, 0], expected.log_std)


def test_log_std_of_every_expert_is_clipped_and_its_mean_is_not():
    policy = MixturePolicy(ENCODER, (6,), 2, 3, log_std_min=-5.0, log_std_max=1.0)
    params = init(policy, array(1, 3))
    for shift, expected in [(100.0, 1.0), (-100.0, -5.0)]:
        head = params["params"]["Dense_0"]
        moved = {"params": {**params["params"], "Dense_0": {**head, "bias": head["bias"] + shift}}}
        mixture = policy.apply(moved, array(7, 3)).pre_tanh
        np.testing.assert_array_equal(mixture.log_std, np.full((7, 3, 2), expected, np.float32))
        assert np.all(np.abs(mixture.mean - shift) < 50.0)
    assert (MixturePolicy.log_std_min, MixturePolicy.log_std_max) == (-20.0, 2.0)


@pytest.mark.parametrize("gate_hidden_sizes", [(), (16,)])
@pytest.mark.parametrize("kernel_init", ["glorot_uniform", "lecun_uniform", "orthogonal"])
def test_the_gate_starts_uniform_and_the_experts_apart(gate_hidden_sizes, kernel_init):
    policy = MixturePolicy(ENCODER, (6,), 2, 3, gate_hidden_sizes, kernel_init=kernel_init)
    mixture = policy.apply(init(policy, array(1, 3)), 10.0 * array(7, 3)).pre_tanh
    np.testing.assert_array_equal(jax.nn.softmax(mixture.logits), np.full((7, 3), 1.0 / 3.0, np.float32))
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        assert np.all(mixture.mean[:, i] != mixture.mean[:, j])


@pytest.mark.parametrize(
    ("name", "limit"), [("glorot_uniform", np.sqrt(6.0 / (200 + 20))), ("lecun_uniform", np.sqrt(3.0 / 200))]
)
def test_every_expert_starts_as_if_alone(name, limit):
    policy = MixturePolicy(ENCODER, (200,), 10, 4, kernel_init=name)
    head = init(policy, array(1, 3))["params"]["Dense_0"]
    np.testing.assert_array_equal(head["bias"], 0.0)
    for k in range(4):
        kernel = head["kernel"][:, 20 * k : 20 * (k + 1)]
        assert 0.98 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3.0), rtol=0.04)


def test_every_orthogonal_expert_starts_as_if_alone():
    policy = MixturePolicy(ENCODER, (16,), 2, 5, kernel_init="orthogonal")  # 20 columns are more than the 16 rows
    kernel = init(policy, array(1, 3))["params"]["Dense_0"]["kernel"]
    for k in range(5):
        own = kernel[:, 4 * k : 4 * (k + 1)]
        np.testing.assert_allclose(own.T @ own, np.eye(4), atol=1e-4)


def test_the_gate_and_the_experts_share_no_parameters():
    policy = MixturePolicy(ENCODER, (6,), 2, 3, (4,))
    observation = array(7, 3)
    params = random_params(policy, observation)
    for part, gate in [("logits", True), ("mean", False), ("log_std", False)]:
        gradient = jax.grad(lambda p, part=part: jnp.sum(getattr(policy.apply(p, observation).pre_tanh, part)))(params)
        for name, layer in gradient["params"].items():
            moved = any(np.any(x != 0.0) for x in jax.tree.leaves(layer))
            assert moved == (name.startswith("gate") == gate)


def test_a_mixture_of_gaussians_has_experts_of_its_own_and_an_even_gate():
    policy = networks.NormalMixturePolicy((ArraySpec((3,), np.dtype(np.float32)),), (8,), 2, 4, output_gain=0.01)
    observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    params = policy.init(jax.random.key(0), observation)
    mixture = policy.apply(params, observation)
    assert mixture.mean.shape == mixture.log_std.shape == (5, 4, 2)
    np.testing.assert_array_equal(mixture.logits, 0.0)
    np.testing.assert_array_equal(mixture.log_std, 0.0)
    assert params["params"]["log_std"].shape == (4, 2) and params["params"]["gate"]["kernel"].shape == (3, 4)
    kernel = params["params"]["Dense_0"]["kernel"].reshape(8, 4, 2)
    for k in range(4):  # each as an orthogonal matrix by itself
        np.testing.assert_allclose(kernel[:, k].T @ kernel[:, k], 1e-4 * np.eye(2), atol=1e-9)
    assert len({float(mixture.mean[0, k, 0]) for k in range(4)}) == 4


MANY_STARTS = """
import jax
from offpolicy_jax import networks
initialize = networks.initializer("orthogonal", 1.4)
shapes = [(11, 64), (64, 64), (64, 3), (11, 64), (64, 64), (64, 1)]
one = lambda key: [initialize(k, s) for k, s in zip(jax.random.split(key, 6), shapes)]
many = jax.jit(jax.vmap(one))
for i in range(2_000):
    jax.block_until_ready(many(jax.random.split(jax.random.key(i), 3)))
"""


def test_orthogonal_networks_of_many_seeds_start_without_hanging():
    """Batched QR decompositions side by side hung XLA's CPU backend within some hundred calls."""
    subprocess.run([sys.executable, "-c", MANY_STARTS], timeout=120, check=True)


def test_orthogonal_weights_of_a_seed_do_not_depend_on_the_others():
    initialize = networks.initializer("orthogonal", 2.0)
    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(lambda k: initialize(k, (5, 7))))(keys)
    for key, kernel in zip(keys, together, strict=True):
        np.testing.assert_array_equal(kernel, initialize(key, (5, 7)))
