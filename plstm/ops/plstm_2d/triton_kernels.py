"""Triton kernels of the recurrence on a grid: gating weights are computed row by row.

Take a tile of P input nodes. Their weights on the edges of the grid (a_0 on the edge that enters a
node along x, a_1 along y, P numbers each) follow the recurrence itself, row by row:

    a_0[x + 1] = T[0,0] a_0[x] + (T[0,1] a_1[x] + S[0] here[x])     a scan along the row
    a_1 below  = T[1,0] a_0 + T[1,1] a_1 + S[1] here                the state of the next row
    G          = M[0] a_0 + M[1] a_1                                gating weights of the P inputs

with here[x] = 1 where the node is the input itself. Only a_1 is kept between rows, in registers.
With S and M exchanged, T transposed and the scan reversed, the same steps give the weights from all
nodes to a tile of P *outputs*. So a program that owns outputs or inputs needs no sums of other
programs. No two programs add to the same address, so results are deterministic.

    read_kernel      owns P outputs: out = (q k^T * G) v; the gradient of q, of the same form
    backward_kernel  owns P inputs: gradients of k, v, direct; a part of those of the gates

A program sums the four corners; two with the same row order share q k^T. No gating matrix
is written and memory is linear in the number of nodes N = Y X: beside inputs and outputs it holds
the eight gates per corner and node, and in the backward pass, for each of its at most 512 + B H
programs, the a_1 of one tile in every row (2 P N numbers) and its part of the gradient of the
gates (8 C N); here N counts padded rows.
Gates are only multiplied and added, so zero and negative ones are exact, in the gradients too.

Operations per pair of nodes and head: 2 (K + V) in the forward pass and 6 (K + V) in the backward
pass, on tensor cores, and per corner that connects the pair about 20 and 90 of the recurrence.

Letters: B batch, Y X rows and columns (X also the row padded to a power of two), H heads,
C corners, K V widths, P nodes that a program owns.
"""

import triton
import triton.language as tl

from plstm.ops.kernels import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    if _INTERPRETED and a.dtype == tl.bfloat16:  # whose bfloat16 matrix products are wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _compose(
    factor, state, factor_before, state_before,
    next_factor, next_state, next_factor_before, next_state_before,
):  # fmt: skip
    """Compose the affine maps of two adjoining stretches of a row on the state that enters them.

    The first pair of a stretch maps to the state after its last node, the second before that node.
    """
    return (
        next_factor * factor,
        next_factor * state + next_state,
        next_factor_before * factor,
        next_factor_before * state + next_state_before,
    )


@triton.jit
def _step(entering, new_0, new_1, t00, t01, t10, t11, LEFTWARD: tl.constexpr):
    """One row of the recurrence: `entering` is a_1, nodes add `new_0` and `new_1`, all (P, X).

    Returns:
        a_0 and the a_1 of the next row, (P, X).
    """
    into_row = t01 * entering + new_0
    zeros = tl.zeros_like(into_row)
    maps = (t00 + zeros, into_row, zeros + 1, zeros)
    _, _, _, along = tl.associative_scan(maps, 1, _compose, reverse=LEFTWARD)
    return along, t10 * along + t11 * entering + new_1


@triton.jit
def _load_gates(gates, corner, y, num_rows, x, BLOCK_X: tl.constexpr):
    """S_0, S_1, T_00, T_01, T_10, T_11, M_0, M_1 of one row, each (1, X), zero beyond the grid."""
    row = gates + (corner * num_rows + y) * (8 * BLOCK_X) + x[None, :]
    s0 = tl.load(row)
    s1 = tl.load(row + BLOCK_X)
    t00 = tl.load(row + 2 * BLOCK_X)
    t01 = tl.load(row + 3 * BLOCK_X)
    t10 = tl.load(row + 4 * BLOCK_X)
    t11 = tl.load(row + 5 * BLOCK_X)
    m0 = tl.load(row + 6 * BLOCK_X)
    m1 = tl.load(row + 7 * BLOCK_X)
    return s0, s1, t00, t01, t10, t11, m0, m1


@triton.jit
def _add_to_gate(row, terms):
    """Add `terms`, (P, X), summed over the owned nodes, to the gradient of one gate in one row.

    Several threads hold the same sum. An atomic addition is deduplicated, while a load and a store
    would be done by all. No other program adds to this address, so the order of the sums is fixed.
    """
    tl.atomic_add(row, tl.sum(terms, 0), sem="relaxed", scope="cta")


@triton.jit
def _vectors(base, nodes, inside, heads, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers to the vectors of some nodes in (Y X, H, WIDTH), and the mask, (nodes, BLOCK)."""
    columns = tl.arange(0, BLOCK)
    where = base + nodes[:, None] * (heads * WIDTH) + columns[None, :]
    return where, inside[:, None] & (columns < WIDTH)[None, :]


@triton.jit
def _load_vectors(base, nodes, inside, heads, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    where, mask = _vectors(base, nodes, inside, heads, WIDTH, BLOCK)
    return tl.load(where, mask=mask, other=0.0)


@triton.jit
def _store_vectors(base, nodes, inside, heads, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    where, mask = _vectors(base, nodes, inside, heads, WIDTH, BLOCK)
    tl.store(where, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _read_step(
    entering, here, gates, corner, y, num_rows, x, LEFTWARD: tl.constexpr, BLOCK_X: tl.constexpr
):
    """One row of the transposed recurrence: its gating weights to the outputs, and the state."""
    s0, s1, t00, t01, t10, t11, m0, m1 = _load_gates(gates, corner, y, num_rows, x, BLOCK_X)
    along, leaving = _step(entering, m0 * here, m1 * here, t00, t10, t01, t11, LEFTWARD)
    return s0 * along + s1 * entering, leaving


@triton.jit
def _read_walk(
    out, own, nodes, direct, other, value, gates, first, count, num_rows, num_columns, heads,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, UPWARD: tl.constexpr,
    D: tl.constexpr, E: tl.constexpr, P: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to `out` what the owned outputs read in `count` rows of nodes, from row `first` on.

    LEFT and RIGHT are the indices of the corners that go that way along the row, or -1.
    """
    x = tl.arange(0, BLOCK_X)
    inside = x < num_columns
    left = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)
    right = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)
    for step in range(count):
        y = first - step if UPWARD else first + step
        row = y * num_columns + x
        here = ((nodes[:, None] == row[None, :]) & inside[None, :]).to(gates.dtype.element_ty)
        weight = here * direct[:, None]
        if LEFT >= 0:
            read, left = _read_step(left, here, gates, LEFT, y, num_rows, x, True, BLOCK_X)
            weight += read
        if RIGHT >= 0:
            read, right = _read_step(right, here, gates, RIGHT, y, num_rows, x, False, BLOCK_X)
            weight += read
        others = _load_vectors(other, row, inside, heads, D, BLOCK_D)
        values = _load_vectors(value, row, inside, heads, E, BLOCK_E)
        scores = _dot(own, tl.trans(others), PRECISION)
        gated = (weight * scores).to(values.dtype)
        out += _dot(gated, values, PRECISION)
    return out


@triton.jit
def read_kernel(
    own, other, value, gates, direct, out, num_rows, num_columns, heads, num_tiles,
    TOP_LEFT: tl.constexpr, TOP_RIGHT: tl.constexpr,
    BOTTOM_LEFT: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, CORNERS: tl.constexpr,
    D: tl.constexpr, E: tl.constexpr, P: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out[n] = sum over m of G[n, m] (own[n] . other[m]) value[m], for P outputs n of one head.

    The forward pass with (q, k, v); the gradient of q with (gradient of out, v, k).
    """
    num_nodes = num_rows * num_columns
    image_head = (tl.program_id(0) // num_tiles).to(tl.int64)
    image, head = image_head // heads, image_head % heads
    first_node = (tl.program_id(0) % num_tiles) * P
    nodes = first_node + tl.arange(0, P)
    owned = nodes < num_nodes
    top = first_node // num_columns
    bottom = (tl.minimum(first_node + P, num_nodes) - 1) // num_columns

    own += (image * num_nodes * heads + head) * D
    other += (image * num_nodes * heads + head) * D
    value += (image * num_nodes * heads + head) * E
    out += (image * num_nodes * heads + head) * E
    gates += image_head * (CORNERS * 8 * BLOCK_X * num_rows)
    own_tile = _load_vectors(own, nodes, owned, heads, D, BLOCK_D)
    direct_tile = tl.load(direct + image_head * num_nodes + nodes, mask=owned, other=0.0)
    result = tl.zeros((P, BLOCK_E), gates.dtype.element_ty)
    if TOP_LEFT >= 0 or TOP_RIGHT >= 0:
        result = _read_walk(
            result, own_tile, nodes, direct_tile, other, value, gates, bottom, bottom + 1,
            num_rows, num_columns, heads, TOP_LEFT, TOP_RIGHT, True,
            D, E, P, BLOCK_X, BLOCK_D, BLOCK_E, PRECISION,
        )  # fmt: skip
        direct_tile = tl.zeros_like(direct_tile)  # already added
    if BOTTOM_LEFT >= 0 or BOTTOM_RIGHT >= 0:
        result = _read_walk(
            result, own_tile, nodes, direct_tile, other, value, gates, top, num_rows - top,
            num_rows, num_columns, heads, BOTTOM_LEFT, BOTTOM_RIGHT, False,
            D, E, P, BLOCK_X, BLOCK_D, BLOCK_E, PRECISION,
        )  # fmt: skip
    _store_vectors(out, nodes, owned, heads, result, E, BLOCK_E)


@triton.jit
def _spread_step(
    entering, here, gates, states, corner, y, num_rows, x,
    LEFTWARD: tl.constexpr, P: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Store the state that enters a row, and return the state of the next row."""
    tl.store(_state_row(states, y, x, P, BLOCK_X), entering)
    s0, s1, t00, t01, t10, t11, _, _ = _load_gates(gates, corner, y, num_rows, x, BLOCK_X)
    _, leaving = _step(entering, s0 * here, s1 * here, t00, t01, t10, t11, LEFTWARD)
    return leaving


@triton.jit
def _state_row(states, y, x, P: tl.constexpr, BLOCK_X: tl.constexpr):
    """Pointers to the states that enter row y in (Y, P, X), (P, X)."""
    return states + (y * P + tl.arange(0, P)[:, None]) * BLOCK_X + x[None, :]


@triton.jit
def _load_step(
    here, gates, states, corner, y, num_rows, x,
    LEFTWARD: tl.constexpr, P: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The stored states that enter a row, a_0 and a_1, and its gating weights, (P, X)."""
    down = tl.load(_state_row(states, y, x, P, BLOCK_X))
    s0, s1, t00, t01, t10, t11, m0, m1 = _load_gates(gates, corner, y, num_rows, x, BLOCK_X)
    along, _ = _step(down, s0 * here, s1 * here, t00, t01, t10, t11, LEFTWARD)
    return along, down, m0 * along + m1 * down


@triton.jit
def _gradient_step(
    leaving, along, down, weight_grad, here, gates, gate_grads, corner, y, num_rows, x,
    LEFTWARD: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates of one row, and of the states that enter it along y.

    Args:
        leaving: Gradient of the states that leave the row along y, (P, X).
        along: a_0 of the row, (P, X).
        down: a_1 of the row, (P, X).
        weight_grad: Gradient of the gating weights of the row, (P, X).
    """
    _, _, t00, t01, t10, t11, m0, m1 = _load_gates(gates, corner, y, num_rows, x, BLOCK_X)
    onward, entering = _step(
        leaving, m0 * weight_grad, m1 * weight_grad, t00, t10, t01, t11, not LEFTWARD
    )
    row = gate_grads + (corner * num_rows + y) * (8 * BLOCK_X) + x
    _add_to_gate(row, onward * here)
    _add_to_gate(row + BLOCK_X, leaving * here)
    _add_to_gate(row + 2 * BLOCK_X, onward * along)
    _add_to_gate(row + 3 * BLOCK_X, onward * down)
    _add_to_gate(row + 4 * BLOCK_X, leaving * along)
    _add_to_gate(row + 5 * BLOCK_X, leaving * down)
    _add_to_gate(row + 6 * BLOCK_X, along * weight_grad)
    _add_to_gate(row + 7 * BLOCK_X, down * weight_grad)
    return entering


@triton.jit
def _backward_walk(
    k_grad, v_grad, direct_grad, k_tile, v_tile, nodes, direct, q, out_grad, gates, gate_grads,
    states, first, count, num_rows, num_columns, heads,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, UPWARD: tl.constexpr, ADD_DIRECT: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Run the owned inputs over `count` rows from row `first` on, then back for the gradients.

    LEFT and RIGHT are the indices of the corners that go that way along the row, or -1.
    """
    x = tl.arange(0, BLOCK_X)
    inside = x < num_columns
    left = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)
    right = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)
    right_states = states + num_rows * P * BLOCK_X
    for step in range(count):
        y = first - step if UPWARD else first + step
        row = y * num_columns + x
        here = ((nodes[:, None] == row[None, :]) & inside[None, :]).to(gates.dtype.element_ty)
        if LEFT >= 0:
            left = _spread_step(left, here, gates, states, LEFT, y, num_rows, x, True, P, BLOCK_X)
        if RIGHT >= 0:
            right = _spread_step(
                right, here, gates, right_states, RIGHT, y, num_rows, x, False, P, BLOCK_X,
            )  # fmt: skip
    tl.debug_barrier()  # threads may read states that other threads stored

    left = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)  # from here on: gradients of states
    right = tl.zeros((P, BLOCK_X), gates.dtype.element_ty)
    for back in range(count):
        step = count - 1 - back
        y = first - step if UPWARD else first + step
        row = y * num_columns + x
        here = ((nodes[:, None] == row[None, :]) & inside[None, :]).to(gates.dtype.element_ty)
        queries = _load_vectors(q, row, inside, heads, K, BLOCK_K)
        cotangents = _load_vectors(out_grad, row, inside, heads, V, BLOCK_V)
        scores = _dot(k_tile, tl.trans(queries), PRECISION)
        value_scores = _dot(v_tile, tl.trans(cotangents), PRECISION)
        weight_grad = scores * value_scores
        weight = here * direct[:, None]
        if LEFT >= 0:
            along, down, read = _load_step(
                here, gates, states, LEFT, y, num_rows, x, True, P, BLOCK_X
            )
            weight += read
            left = _gradient_step(
                left, along, down, weight_grad, here, gates, gate_grads, LEFT, y,
                num_rows, x, True, BLOCK_X,
            )  # fmt: skip
        if RIGHT >= 0:
            along, down, read = _load_step(
                here, gates, right_states, RIGHT, y, num_rows, x, False, P, BLOCK_X
            )
            weight += read
            right = _gradient_step(
                right, along, down, weight_grad, here, gates, gate_grads, RIGHT, y,
                num_rows, x, False, BLOCK_X,
            )  # fmt: skip
        if ADD_DIRECT:
            direct_grad += tl.sum(weight_grad * here, 1)
        gated = (weight * value_scores).to(queries.dtype)
        k_grad += _dot(gated, queries, PRECISION)
        gated = (weight * scores).to(cotangents.dtype)
        v_grad += _dot(gated, cotangents, PRECISION)
    return k_grad, v_grad, direct_grad


@triton.jit
def backward_kernel(
    q, k, v, out_grad, gates, direct, k_grad, v_grad, direct_grad, gate_grads, states,
    num_rows, num_columns, heads, num_tiles, num_shares,
    TOP_LEFT: tl.constexpr, TOP_RIGHT: tl.constexpr,
    BOTTOM_LEFT: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, CORNERS: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, P: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of k, v and direct, and this program's part of those of the gates.

    A program handles every num_shares-th tile of P inputs of one head, one after the other, with
    its own gradient of the gates of that head and its own states of one tile.
    """
    program = tl.program_id(0).to(tl.int64)
    num_nodes = num_rows * num_columns
    image_head = program // num_shares
    image, head = image_head // heads, image_head % heads
    q += (image * num_nodes * heads + head) * K
    k += (image * num_nodes * heads + head) * K
    k_grad += (image * num_nodes * heads + head) * K
    v += (image * num_nodes * heads + head) * V
    v_grad += (image * num_nodes * heads + head) * V
    out_grad += (image * num_nodes * heads + head) * V
    gates += image_head * (CORNERS * 8 * BLOCK_X * num_rows)
    gate_grads += program * (CORNERS * 8 * BLOCK_X * num_rows)
    states += program * (2 * num_rows * P * BLOCK_X)

    for tile in range(tl.program_id(0) % num_shares, num_tiles, num_shares):
        first_node = tile * P
        nodes = first_node + tl.arange(0, P)
        owned = nodes < num_nodes
        top = first_node // num_columns
        bottom = (tl.minimum(first_node + P, num_nodes) - 1) // num_columns
        k_tile = _load_vectors(k, nodes, owned, heads, K, BLOCK_K)
        v_tile = _load_vectors(v, nodes, owned, heads, V, BLOCK_V)
        direct_tile = tl.load(direct + image_head * num_nodes + nodes, mask=owned, other=0.0)
        to_k = tl.zeros((P, BLOCK_K), gates.dtype.element_ty)
        to_v = tl.zeros((P, BLOCK_V), gates.dtype.element_ty)
        to_direct = tl.zeros((P,), gates.dtype.element_ty)
        if TOP_LEFT >= 0 or TOP_RIGHT >= 0:
            to_k, to_v, to_direct = _backward_walk(
                to_k, to_v, to_direct, k_tile, v_tile, nodes, direct_tile, q, out_grad,
                gates, gate_grads, states, top, num_rows - top, num_rows, num_columns, heads,
                TOP_RIGHT, TOP_LEFT, False, True,
                K, V, P, BLOCK_X, BLOCK_K, BLOCK_V, PRECISION,
            )  # fmt: skip
            direct_tile = tl.zeros_like(direct_tile)  # already added
            tl.debug_barrier()  # the next walk reuses the memory of the states
        if BOTTOM_LEFT >= 0 or BOTTOM_RIGHT >= 0:
            to_k, to_v, to_direct = _backward_walk(
                to_k, to_v, to_direct, k_tile, v_tile, nodes, direct_tile, q, out_grad,
                gates, gate_grads, states, bottom, bottom + 1, num_rows, num_columns, heads,
                BOTTOM_RIGHT, BOTTOM_LEFT, True, TOP_LEFT < 0 and TOP_RIGHT < 0,
                K, V, P, BLOCK_X, BLOCK_K, BLOCK_V, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        _store_vectors(k_grad, nodes, owned, heads, to_k, K, BLOCK_K)
        _store_vectors(v_grad, nodes, owned, heads, to_v, V, BLOCK_V)
        tl.store(direct_grad + image_head * num_nodes + nodes, to_direct, mask=owned)
