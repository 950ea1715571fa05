import sys
from itertools import combinations, product

import pytest
import torch

from plstm import PLSTM2d
from plstm.ops import native, plstm_1d, plstm_2d
from plstm.ops.plstm_2d import CORNERS, cpu, dense, plstm_2d_gating, scan
from plstm.ops.plstm_2d.corners import scan_orders
from tests.helpers import TOLERANCE, assert_close, gradients
from tests.ops.inputs import grid_inputs, require_grad

MODULE = sys.modules["plstm.ops.plstm_2d"]  # as an attribute the name is the function
GATES = ("source", "transition", "mark")  # with a leading axis of corners
SIZES = [(1, 1), (1, 6), (6, 1), (3, 5), (7, 4)]
FLIPPED = {  # corner after flipping the image along an axis of (B, Y, X)
    1: dict(zip(CORNERS, ("bottom_left", "bottom_right", "top_left", "top_right"), strict=True)),
    2: dict(zip(CORNERS, ("top_right", "top_left", "bottom_right", "bottom_left"), strict=True)),
}
TRANSPOSED = dict(
    zip(CORNERS, ("top_left", "bottom_left", "top_right", "bottom_right"), strict=True)
)
SETS = [chosen for n in (1, 2, 4) for chosen in combinations(CORNERS, n)]

COMPILED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(not native.available(source), reason="needs a C++ compiler"),
    )
    for name, source in (("dense", dense.SOURCE), ("scan", scan.SOURCE))
]

all_backends = pytest.mark.parametrize("backend", ["naive", "rows", "chunk", *COMPILED])
corner_cases = pytest.mark.parametrize("corner", CORNERS)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Blocks of one to three rows on the grids of this file, so that states cross borders."""
    monkeypatch.setattr(MODULE, "CHUNK_TOKENS", 12)


def assert_backends_agree(inputs, corners, backend, **options):
    results = {}
    for name in ("naive", backend):
        out = plstm_2d(**inputs, corners=corners, backend=name, **options)
        results[name] = {"output": out} | {
            f"gradient of {key}": grad for key, grad in gradients(out, inputs).items()
        }
    for name, want in results["naive"].items():
        assert_close(name, results[backend][name], want)


def map_gates(inputs, change):
    return {name: change(x) if name in GATES else x for name, x in inputs.items()}


def gating_by_paths(source, transition, mark, rows, columns):
    """Walk along every path from every node; gates of one head (Y, X, ...), top_left."""
    gating = torch.zeros(rows, columns, rows, columns, dtype=source.dtype)

    def walk(start, y, x, g, weight):
        y, x = (y, x + 1) if g == 0 else (y + 1, x)
        if y == rows or x == columns:
            return
        gating[y, x, *start] += mark[y, x, g] * weight
        for onward in (0, 1):
            walk(start, y, x, onward, transition[y, x, onward, g] * weight)

    for start in product(range(rows), range(columns)):
        for g in (0, 1):
            walk(start, *start, g, source[*start, g])
    return gating.reshape(rows * columns, rows * columns)


def test_naive_by_hand():
    """2 x 2 nodes, everything 1 except the transitions of the node to the right of the first."""
    one = torch.ones(1, 2, 2, 1, 1, dtype=torch.float64)
    transition = torch.ones(1, 1, 2, 2, 1, 2, 2, dtype=torch.float64)
    transition[0, 0, 0, 1, 0] = torch.tensor([[5.0, 5.0], [0.5, 5.0]])  # right and then down: 0.5
    transition[0, 0, 1, 0, 0] = torch.tensor([[5.0, 0.25], [5.0, 5.0]])  # down and then right: 0.25
    values = torch.tensor([[1.0, 10.0], [100.0, 1000.0]], dtype=torch.float64)[
        None, ..., None, None
    ]
    edges = torch.ones(1, 1, 2, 2, 1, 2, dtype=torch.float64)
    mark = edges * torch.tensor([3.0, 2.0])  # 3 for what comes along x, 2 along y
    args = (one, one, values, edges, transition, mark, one[..., 0])
    out = plstm_2d(*args, backend="naive")[0, ..., 0, 0]
    last = 2 * (0.5 * 1 + 10) + 3 * (0.25 * 1 + 100) + 1000
    assert torch.equal(out, out.new_tensor([[1, 3 + 10], [2 + 100, last]]))


@corner_cases
def test_naive_gradcheck(corner):
    inputs = grid_inputs(2, 3, batch=1, key_width=2, value_width=1)

    def run(*args):
        return plstm_2d(*args, corners=(corner,), backend="naive")

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("backend", ["rows", "chunk", "auto", *COMPILED])
@pytest.mark.parametrize("corners", SETS, ids="+".join)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_equals_naive(rows, columns, corners, backend):
    assert_backends_agree(grid_inputs(rows, columns, len(corners)), corners, backend, scale=0.3)


@pytest.mark.parametrize("tokens", [1, 4, 8, 11, 20, 28, 1000])
@pytest.mark.parametrize("corners", [*SETS[:4], CORNERS], ids="+".join)
def test_chunk_sizes(corners, tokens, monkeypatch):
    monkeypatch.setattr(MODULE, "CHUNK_TOKENS", tokens)
    assert_backends_agree(grid_inputs(7, 4, len(corners)), corners, "chunk")


def test_auto_beyond_whole_matrix(monkeypatch):
    monkeypatch.setattr(native, "available", lambda source: False)
    monkeypatch.setattr(MODULE, "DENSE_ENTRIES", 27)
    monkeypatch.setitem(MODULE.FORMS, "rows", None)  # must not be called
    assert_backends_agree(grid_inputs(7, 4, 4), CORNERS, "auto")


@pytest.mark.skipif(not native.available(dense.SOURCE), reason="needs a C++ compiler")
@pytest.mark.parametrize(("work", "form"), [(3, "dense"), (2, "scan")])
def test_auto_scans_large_grids(work, form, monkeypatch):
    """4 nodes times K + V = 7 against G K V = 12."""
    monkeypatch.setattr(cpu, "DENSE_WORK", work)
    other = {"dense": "scan", "scan": "dense"}[form]
    monkeypatch.setitem(cpu.FORMS, other, None)  # must not be called
    assert_backends_agree(grid_inputs(1, 4), CORNERS[:1], "auto")


@pytest.mark.parametrize("entries", [1, 60, 10**6], ids=["one", "two", "all"])
def test_dense_in_parts(entries, monkeypatch):
    """Of five images with one head each."""
    monkeypatch.setattr(dense, "PART_ENTRIES", entries)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert_backends_agree(grid_inputs(2, 3, 2, batch=5, heads=1), CORNERS[:2], "dense")


@pytest.mark.parametrize("form", COMPILED)
def test_compiled_forms_are_a_sound_operator(form):
    """Without values to pad, and with some."""
    for value_width in (3, 8):
        inputs = grid_inputs(2, 3, 2, value_width=value_width)
        q, k, v, *of_corners, direct = (x.detach() for x in inputs.values())
        gates = [x.movedim((1, 4), (0, 1)) for x in of_corners]
        q, k, v, direct = (x.movedim(3, 1) for x in (q, k, v, direct))
        tensors = [x.contiguous().requires_grad_() for x in (q, k, v, *gates, direct)]
        torch.library.opcheck(cpu._grid, (*tensors, scan_orders(CORNERS[1:3]), 0.3, form))


@pytest.mark.parametrize("form", COMPILED)
def test_compiles_as_one_operator(form):
    inputs = grid_inputs(3, 4, 4)
    run = torch.compile(plstm_2d, fullgraph=True)
    want, got = (f(**inputs, corners=CORNERS, backend=form) for f in (plstm_2d, run))
    assert_close("output", got, want)
    got = gradients(got, inputs)
    for name, grad in gradients(want, inputs).items():
        assert_close(f"gradient of {name}", got[name], grad)


@all_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision(dtype, backend):
    inputs = grid_inputs(5, 6, 4, dtype=dtype)
    exact = require_grad(inputs, torch.float64)
    out = plstm_2d(**inputs, corners=CORNERS, backend=backend)
    want = plstm_2d(**exact, corners=CORNERS, backend="naive")
    assert out.dtype == dtype
    rtol, grad_rtol = TOLERANCE[dtype]
    assert_close("output", out, want, rtol)
    got, want = gradients(out, inputs), gradients(want, exact)
    for name in inputs:
        assert got[name].dtype == dtype
        assert_close(f"gradient of {name}", got[name], want[name], grad_rtol)


@all_backends
def test_autocast_leaves_numbers_alone(backend):
    inputs = grid_inputs(5, 4, 4, dtype=torch.float32)
    want = plstm_2d(**inputs, corners=CORNERS, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = plstm_2d(**inputs, corners=CORNERS, backend=backend)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@all_backends
@corner_cases
@pytest.mark.parametrize("direction", [0, 1], ids=["row", "column"])
def test_one_line_is_a_sequence(direction, corner, backend):
    length = 9
    inputs = grid_inputs(*((1, length) if direction == 0 else (length, 1)))
    got = plstm_2d(**inputs, corners=(corner,), backend=backend).squeeze(1 + direction)

    backward = corner in (("top_right", "bottom_right"), ("bottom_left", "bottom_right"))[direction]
    sequence = dict(inputs)
    for name in GATES:
        sequence[name] = inputs[name][0][..., direction]
    sequence["transition"] = sequence["transition"][..., direction]
    sequence = {name: x.flatten(1, 2) for name, x in sequence.items()}
    if backward:
        sequence = {name: x.flip(1) for name, x in sequence.items()}
    want = plstm_1d(**sequence, backend="naive")
    assert_close("output", got, want.flip(1) if backward else want)


@all_backends
@corner_cases
def test_transpose(corner, backend):
    inputs = grid_inputs(3, 5)
    out = plstm_2d(**inputs, corners=(corner,), backend=backend)
    swapped = {
        "source": inputs["source"].transpose(2, 3).flip(-1),
        "transition": inputs["transition"].transpose(2, 3).flip(-1, -2),
        "mark": inputs["mark"].transpose(2, 3).flip(-1),
    } | {name: inputs[name].transpose(1, 2) for name in ("q", "k", "v", "direct")}
    got = plstm_2d(**swapped, corners=(TRANSPOSED[corner],), backend=backend)
    assert_close("output", got.transpose(1, 2), out)


@all_backends
@corner_cases
@pytest.mark.parametrize("axis", [1, 2], ids=["rows", "columns"])
def test_flip(axis, corner, backend):
    inputs = grid_inputs(3, 5)
    out = plstm_2d(**inputs, corners=(corner,), backend=backend)
    flipped = {name: x.flip(axis + (name in GATES)) for name, x in inputs.items()}
    got = plstm_2d(**flipped, corners=(FLIPPED[axis][corner],), backend=backend)
    assert_close("output", got.flip(axis), out)


@all_backends
def test_corners_add(backend):
    inputs = grid_inputs(3, 5, 4)
    total = 0
    for c, corner in enumerate(CORNERS):
        single = map_gates(inputs, lambda x, c=c: x[c : c + 1])
        if c > 0:
            single["direct"] = torch.zeros_like(single["direct"])
        total = total + plstm_2d(**single, corners=(corner,), backend=backend)
    assert_close("output", plstm_2d(**inputs, corners=CORNERS, backend=backend), total)


@all_backends
def test_corner_order_is_free(backend):
    inputs = grid_inputs(3, 5, 4)
    order = [2, 0, 3, 1]
    moved = map_gates(inputs, lambda x: x[order])
    got = plstm_2d(**moved, corners=tuple(CORNERS[c] for c in order), backend=backend)
    assert_close("output", got, plstm_2d(**inputs, corners=CORNERS, backend=backend))


@corner_cases
def test_gating_is_sum_over_paths(corner):
    inputs = grid_inputs(3, 3, batch=1, heads=1)
    got = plstm_2d_gating(*(inputs[name] for name in (*GATES, "direct")), (corner,))[0, 0]
    turned = [0] * corner.startswith("bottom") + [1] * corner.endswith("right")
    gates = (inputs[name].detach()[0, 0, :, :, 0].flip(turned) for name in GATES)
    want = gating_by_paths(*gates, 3, 3).view(3, 3, 3, 3)
    want = want.flip([*turned, *(axis + 2 for axis in turned)]).reshape(9, 9)
    assert_close("gating", got, want + torch.diag(inputs["direct"].detach().flatten()))


@all_backends
@pytest.mark.parametrize("corners", [CORNERS[:1], CORNERS[1:3], CORNERS], ids="+".join)
def test_gating_gives_the_output(corners, backend):
    inputs = grid_inputs(4, 3, len(corners))
    gating = plstm_2d_gating(*(inputs[name] for name in (*GATES, "direct")), corners)
    q, k, v = (inputs[name].flatten(1, 2) for name in "qkv")
    want = torch.einsum("bhnm,bnhk,bmhk,bmhv->bnhv", gating, q, k, v).unflatten(1, (4, 3))
    got = plstm_2d(**inputs, corners=corners, scale=1.0, backend=backend)
    assert_close("output", got, want)


@all_backends
def test_reaches_down_and_right_only(backend):
    inputs = grid_inputs(4, 5)
    out = plstm_2d(**inputs, backend=backend)
    v = inputs["v"].detach().clone()
    v[:, 1, 3] += 1
    moved = plstm_2d(**inputs | {"v": v}, backend=backend) != out
    want = torch.zeros(4, 5, dtype=torch.bool)
    want[1:, 3:] = True
    assert torch.equal(moved.any(0).any(-1).any(-1), want)


@all_backends
@corner_cases
def test_first_corner_reaches_last(corner, backend):
    inputs = grid_inputs(6, 7)
    with torch.no_grad():  # no column forgets everything
        inputs["transition"].copy_(torch.rand_like(inputs["transition"]))
    first = (-1 if corner.startswith("bottom") else 0, -1 if corner.endswith("right") else 0)
    last = tuple(-1 - i for i in first)
    out = plstm_2d(**inputs, corners=(corner,), backend=backend)
    v = inputs["v"].detach().clone()
    v[:, *first] = 0
    moved = plstm_2d(**inputs | {"v": v}, corners=(corner,), backend=backend) - out
    assert moved[:, *last].norm() > 1e-3 * out[:, *last].norm()


@pytest.mark.parametrize("bias", [0.1, 100.0], ids=["decaying", "lossless"])
def test_p_mode_never_amplifies(bias):
    layer = PLSTM2d(8, 2, mode="P", corners=("top_left",), transition_bias=bias).double()
    for p in layer.parameters():
        p.data += 0.3 * torch.randn_like(p)
    size = 6
    with torch.no_grad():
        _, transition, mark, direct = layer.gates(3 * torch.randn(2, size, size, 8).double())
    split = transition.abs().sum(-2)  # over the outgoing edges of every incoming edge
    assert (split <= 1 + 1e-12).all()
    # Mass sent out by the first node alone, and what of it arrives on every antidiagonal.
    source = torch.zeros_like(mark)
    source[:, :, 0, 0] = 0.5
    gating = plstm_2d_gating(
        source, transition.abs(), torch.ones_like(mark), torch.zeros_like(direct), ("top_left",)
    )
    arriving = gating[..., 0].unflatten(-1, (size, size)).flip(-1)
    mass = torch.stack(
        [arriving.diagonal(size - 1 - n, -2, -1).sum(-1) for n in range(1, 2 * size - 1)], -1
    )
    assert (mass.diff(dim=-1) <= 1e-12).all()
    if bias == 100.0:  # before the border nothing is lost
        assert_close("mass", mass[..., : size - 1], torch.ones_like(mass[..., : size - 1]))


@pytest.mark.parametrize("chirality", ["L", "R"])
def test_d_mode_is_a_multitree(chirality):
    size = 4
    layer = PLSTM2d(8, 1, mode="D", chirality=chirality, corners=("top_left",))
    with torch.no_grad():
        transition = layer.gates(torch.randn(1, size, size, 8))[1][0, 0, 0, 0, 0]
    dropped = (1, 0) if chirality == "L" else (0, 1)
    connected = (transition != 0).double()
    assert connected[dropped] == 0
    assert connected.sum() == 3
    assert count_paths(connected, size).max() == 1
    assert count_paths(torch.ones(2, 2), size).max() > 1


def count_paths(connected, size):
    """Paths between all edges of a grid whose nodes connect edges as in `connected` [out, in]."""
    number = {edge: n for n, edge in enumerate(product(range(size), range(size), (0, 1)))}
    adjacency = torch.zeros(len(number), len(number), dtype=torch.float64)
    for y, x, g in number:
        end = (y, x + 1) if g == 0 else (y + 1, x)
        for onward in (0, 1):
            if (*end, onward) in number:
                adjacency[number[*end, onward], number[y, x, g]] = connected[onward, g]
    return torch.linalg.inv(torch.eye(len(number), dtype=torch.float64) - adjacency).round()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 3, 5, 2, 9)}, r"plstm_2d: k must have shape \(B, Y, X, H, K\)"),
        ({"transition": torch.ones(1, 2, 3, 5, 2, 2)}, r"transition must have shape .*2, 2\), got"),
        ({"source": torch.ones(2, 3, 5, 2, 2)}, r"source must have shape \(1, B, Y, X, H, 2\)"),
        ({"corners": ("top_left", "top_right")}, r"source must have shape \(2, B, Y, X, H, 2\)"),
        ({"corners": ("top_left", "top_left")}, "corners must be distinct and at least one"),
        ({"corners": ()}, "corners must be distinct and at least one"),
        ({"corners": ("middle",)}, "every corner must be one of 'top_left'.*got 'middle'"),
        ({"v": torch.ones(2, 3, 5, 2, 4).long()}, "v must be a floating-point tensor"),
        ({"mark": torch.ones(1, 2, 3, 5, 2, 2, device="meta")}, "must be on one device"),
        ({"backend": "fast"}, "backend must be one of"),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        plstm_2d(**grid_inputs(3, 5, dtype=torch.float32) | change)


@pytest.mark.parametrize("backend", MODULE.COMPILED)
def test_compiled_forms_are_for_the_cpu(backend):
    elsewhere = {name: x.to("meta") for name, x in grid_inputs(3, 5).items()}
    with pytest.raises(ValueError, match="needs tensors on the CPU, got meta"):
        plstm_2d(**elsewhere, backend=backend)


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0)])
def test_empty_grid(rows, columns):
    with pytest.raises(ValueError, match="must not be empty"):
        plstm_2d(**grid_inputs(rows, columns))
