"""Higher derivatives of every backend equal those of naive, or raise an error."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from plstm import PLSTM2d
from plstm.graph import LineGraph
from plstm.modules.norm import rms_norm
from plstm.ops import (
    delta_rule,
    gated_linear_attention,
    mamba2d,
    mlstm,
    native,
    plstm_1d,
    plstm_2d,
    plstm_dag,
)
from plstm.ops.kernels import HAS_TRITON, INTERPRETED
from plstm.ops.plstm_2d import CORNERS, gates, scan
from tests.helpers import assert_close
from tests.ops.inputs import grid_inputs, sequence_inputs
from tests.ops.recurrence import attention_inputs

EDGES = torch.tensor([[0, 1, 2, 0, 3], [1, 2, 3, 2, 4]])  # two paths from 0 to 2


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def attention(*gates):
    inputs = attention_inputs(5, gates=gates, batch=1)
    return {name: -x.exp() if name == "log_decay" else x for name, x in inputs.items()}


def per_channel():
    inputs = attention()
    return inputs | {"log_decay": -inputs["k"].exp()}


def grid():
    # One corner and one head: Triton's interpreter takes a second for each of them and row.
    return grid_inputs(2, 3, batch=1, heads=1) | {"corners": CORNERS[1:2]}


def dag():
    graph, heads = LineGraph.from_edges(EDGES, 5), 2
    edges, pairs = graph.num_edges, graph.line_index.shape[1]
    gates = {"source": edges, "transition": pairs, "mark": edges, "direct": 5}
    inputs = {name: normal(count, heads) for name, count in gates.items()}
    rows = {"q": normal(5, heads, 3), "k": normal(5, heads, 3), "v": normal(5, heads, 4)}
    return rows | inputs | {"graph": graph}


def mamba2d_inputs():
    nodes, rates = (1, 2, 3), normal(2, 3)
    steps = {name: normal(*nodes, 2).exp() for name in ("dt_left", "dt_top")}
    vectors = {name: normal(*nodes, 3) for name in ("b_left", "b_top", "c")}
    decays = {"a_left": -rates.exp(), "a_top": -rates.cos().exp()}
    return {"x": normal(*nodes, 2), **steps, **decays, **vectors}


def mlstm_inputs():
    inputs = attention("input_gate", "forget_gate")
    del inputs["state"]
    return inputs


OPS = {  # op, its inputs, its backends of plain operations, and its kernels
    "plstm_1d": (plstm_1d, lambda: sequence_inputs(5, batch=1), ("auto", "chunk"), ("triton",)),
    "lanes": (plstm_1d, lambda: sequence_inputs(5, (2, 1, 2)), ("auto", "chunk"), ()),
    "plstm_2d": (plstm_2d, grid, ("auto", "rows", "chunk"), ("dense", "scan", "triton")),
    "plstm_dag": (plstm_dag, dag, ("auto", "levels"), ("reach",)),
    "no decay": (gated_linear_attention, attention, ("auto", "chunk"), ()),
    "decay": (gated_linear_attention, lambda: attention("log_decay"), ("auto", "chunk"), ()),
    "decays": (gated_linear_attention, per_channel, ("auto", "chunk"), ()),
    "delta_rule": (delta_rule, lambda: attention("beta", "log_decay"), ("auto", "chunk"), ()),
    "mlstm": (mlstm, mlstm_inputs, ("auto", "chunk"), ()),
    "mamba2d": (mamba2d, mamba2d_inputs, ("auto", "diagonals"), ()),
}
PLAIN = [(name, backend) for name, (*_, plain, _) in OPS.items() for backend in plain]
KERNELS = [(name, backend) for name, (*_, kernels) in OPS.items() for backend in kernels]


def as_function(name, backend):
    """The op as a function of its tensors, and these."""
    if backend in ("dense", "scan") and not native.available(scan.SOURCE):
        pytest.skip("needs a C++ compiler")
    if backend == "triton" and not (HAS_TRITON and INTERPRETED):
        pytest.skip("needs the interpreter of Triton")
    op, make, *_ = OPS[name]
    inputs = make()
    tensors = {key: x.detach() for key, x in inputs.items() if isinstance(x, torch.Tensor)}
    options = {key: x for key, x in inputs.items() if key not in tensors}

    def run(*args):
        return op(**dict(zip(tensors, args, strict=True)), **options, backend=backend)

    return run, tuple(tensors.values())


def directions(xs):
    return tuple(torch.linspace(-1, 2, x.numel(), dtype=x.dtype).sin().view_as(x) for x in xs)


def along(grads, xs):
    return sum((grad * t).sum() for grad, t in zip(grads, directions(xs), strict=True))


def flat(tensors):
    return torch.cat([x.flatten() for x in tensors])


def forward_mode(f, xs):
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(*pair) for pair in zip(xs, directions(xs), strict=True))
        return forward_ad.unpack_dual(f(*duals)).tangent


def func_jvp(f, xs):
    return torch.func.jvp(f, xs, directions(xs))[1]


def func_gradient(f, xs):
    return torch.func.grad(lambda *args: f(*args).square().sum(), tuple(range(len(xs))))


def func_forward_over_reverse(f, xs):
    return flat(torch.func.jvp(func_gradient(f, xs), xs, directions(xs))[1])


def func_reverse_over_reverse(f, xs):
    gradient = func_gradient(f, xs)
    of_gradient = torch.func.grad(lambda *args: along(gradient(*args), xs), tuple(range(len(xs))))
    return flat(of_gradient(*xs))


def func_hessian(f, xs):
    return torch.func.hessian(lambda x: f(x, *xs[1:]).square().sum())(xs[0])


def func_vmap(f, xs):
    return torch.func.vmap(f)(*(torch.stack([x, 0.5 * x]) for x in xs))


def backward_twice(f, xs, weight):
    xs = [x.clone().requires_grad_() for x in xs]
    out = f(*xs)
    grads = torch.autograd.grad(out, xs, weight(out), create_graph=True)
    return flat(
        torch.autograd.grad(along(grads, xs), xs, allow_unused=True, materialize_grads=True)
    )


def backward_twice_from_ones(f, xs):
    return backward_twice(f, xs, torch.ones_like)


def backward_twice_from_output(f, xs):
    return backward_twice(f, xs, lambda out: 2 * out)


TRANSFORMS = (
    forward_mode,
    func_jvp,
    func_forward_over_reverse,
    func_reverse_over_reverse,
    func_hessian,
    func_vmap,
)
TWICE = (backward_twice_from_ones, backward_twice_from_output)


def assert_equal_or_refused(name, backend, way):
    """Whether the derivative raises an error with a name and a hint."""
    want = way(*as_function(name, "naive"))
    assert want.abs().max() > 1e-3
    try:
        got = way(*as_function(name, backend))
    except NotImplementedError as error:
        assert re.match(r"\w+: .*backend.* first derivatives .*naive", str(error))
        return True
    assert_close(way.__name__, got, want)
    return False


@pytest.mark.parametrize("way", TRANSFORMS)
@pytest.mark.parametrize(("name", "backend"), PLAIN)
def test_transforms_of_plain_operations(name, backend, way):
    assert not assert_equal_or_refused(name, backend, way)


@pytest.mark.parametrize("way", TRANSFORMS)
@pytest.mark.parametrize(("name", "backend"), KERNELS)
def test_transforms_of_kernels(name, backend, way):
    assert assert_equal_or_refused(name, backend, way)


@pytest.mark.parametrize("way", TWICE)
@pytest.mark.parametrize(("name", "backend"), PLAIN + KERNELS)
def test_backward_twice(name, backend, way):
    assert_equal_or_refused(name, backend, way)


@pytest.mark.parametrize(("name", "backend"), PLAIN + KERNELS)
def test_a_graph_of_the_gradients_alone_is_allowed(name, backend):
    f, xs = as_function(name, backend)
    xs = [x.requires_grad_() for x in xs]
    out = f(*xs)
    want, got = (
        torch.autograd.grad(out.sum(), xs, create_graph=x, retain_graph=True) for x in (False, True)
    )
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", TRANSFORMS + TWICE)
@pytest.mark.parametrize("leading", [(), (3,)], ids=["one_scale", "scale_per_head"])
def test_rms_norm(way, leading):
    def plain(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.1) * weight

    xs = normal(2, 3, 4), 1 + normal(*leading, 4)
    assert_close(way.__name__, way(lambda *args: rms_norm(*args, 0.1), xs), way(plain, xs))


@pytest.mark.parametrize("mode", ["P", "D"])
def test_gates_of_a_grid(mode):
    """The layer leaves its compiled gates to backward()."""
    layer, x = PLSTM2d(4, 2, mode=mode).double(), normal(1, 2, 3, 4)
    plain = PLSTM2d(4, 2, mode=mode, backend="naive").double()
    plain.load_state_dict(layer.state_dict())
    assert_close("tangent", func_jvp(layer, (x,)), func_jvp(plain, (x,)))
    if layer.backend == "auto" and native.available(gates.SOURCE):
        with pytest.raises(NotImplementedError, match=r"^plstm_2d: .* first derivatives only"):
            backward_twice_from_ones(lambda x: sum(y.sum() for y in layer.gates(x)), (x,))


def test_compiled():
    """torch.compile sees the same choice."""
    f, xs = as_function("plstm_2d", "auto")
    tangent = torch.compile(func_jvp, fullgraph=True, backend="eager")(f, xs)
    assert_close("tangent", tangent, func_jvp(*as_function("plstm_2d", "naive")))
