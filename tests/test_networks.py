"""Networks: what they compute from their parameters, how they read observations, how they start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offpolicy_jax import networks
from offpolicy_jax.networks import MLP, CategoricalPolicy, Critics, StackedDense, TanhNormalPolicy
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
