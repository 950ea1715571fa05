"""Triton kernels of the chunkwise form for one lane, forward and backward.

In a chunk, with P[t, s] the product of the transitions strictly between positions s < t,

    inside[t, s] = M_t P[t, s] S_s below the diagonal, D_t on it: input s to output t
    enter[t] = product of the transitions before t; times M_t: entering state to output t
    leave[s] = product of the transitions after s; times S_s: input s to leaving state
    across   = product of all transitions: entering to leaving state

One kernel runs along the chunks and stores the state at every border; the others process each chunk
separately. With enter and leave exchanged, the first runs backwards and stores the gradients of
those states, and the output kernel computes the gradient of v. Products, and gradients with respect
to one of their factors (what precedes it times what follows it), use multiplication only: zero and
negative transitions are exact.

Letters: B batch, L positions, H heads, K V widths, N chunks, C positions in a chunk. Positions past
the end load zeros and transition 1, which change nothing.
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
def _tile(
    x, row, rows, stride, column, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Pointers to a tile of a matrix with row stride `stride`, and the mask of those in it."""
    r = row + tl.arange(0, ROWS)
    c = column + tl.arange(0, COLUMNS)
    return x + r[:, None] * stride + c[None, :], (r < rows)[:, None] & (c < columns)[None, :]


@triton.jit
def _load(
    x, row, rows, stride, column, columns: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    where, mask = _tile(x, row, rows, stride, column, columns, ROWS, COLUMNS)
    return tl.load(where, mask=mask, other=0.0)


@triton.jit
def _store(
    x,
    tile,
    row,
    rows,
    stride,
    column,
    columns: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    where, mask = _tile(x, row, rows, stride, column, columns, ROWS, COLUMNS)
    tl.store(where, tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _load_gate(gate, position, length, heads, C: tl.constexpr, other):
    """Values of one gate from `position` on; `other` outside the sequence."""
    t = position + tl.arange(0, C)
    return tl.load(gate + t * heads, mask=(t >= 0) & (t < length), other=other)


@triton.jit
def _factors_before(transition, first, length, heads, C: tl.constexpr):
    """For each position of a chunk, the transition of the one before; 1 for the first."""
    before = _load_gate(transition, first - 1, length, heads, C, 1.0)
    return tl.where(tl.arange(0, C) > 0, before, 1.0)


@triton.jit
def _border_products(transition, first, length, heads, C: tl.constexpr):
    """Return enter, leave and across of one chunk."""
    t = tl.arange(0, C)
    enter = tl.cumprod(_factors_before(transition, first, length, heads, C))
    after = _load_gate(transition, first + 1, length, heads, C, 1.0)
    leave = tl.cumprod(tl.where(t < C - 1, after, 1.0), reverse=True)
    own = _load_gate(transition, first, length, heads, C, 1.0)
    across = tl.sum(tl.where(t == C - 1, enter * own, 0.0))
    return enter, leave, across


@triton.jit
def _products_between(transition, first, length, heads, C: tl.constexpr):
    """Return P[t, s] of one chunk, zero on and above the diagonal."""
    t = tl.arange(0, C)
    factors = _factors_before(transition, first, length, heads, C)
    products = tl.cumprod(tl.where(t[:, None] > t[None, :] + 1, factors[:, None], 1.0), 0)
    return tl.where(t[:, None] > t[None, :], products, 0.0)


@triton.jit
def border_kernel(
    left, right, gate, transition, initial, borders, final, length, heads, chunks,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """States at the chunk borders: state <- across state + (gate leave left)^T right.

    REVERSE: their gradients, from the last chunk to the first, with enter in place of leave.
    """
    sequence = tl.program_id(0).to(tl.int64)
    start_k, start_v = tl.program_id(1) * BLOCK_K, tl.program_id(2) * BLOCK_V
    origin = sequence // heads * length * heads + sequence % heads
    left, right = left + origin * K, right + origin * V
    gate, transition = gate + origin, transition + origin
    offset = sequence * K * V
    state = _load(initial + offset, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V)
    for step in range(chunks):
        chunk = chunks - 1 - step if REVERSE else step
        border = borders + (sequence * chunks + chunk) * K * V
        _store(border, state, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V)
        first = chunk.to(tl.int64) * C
        enter, leave, across = _border_products(transition, first, length, heads, C)
        weight = _load_gate(gate, first, length, heads, C, 0.0) * (enter if REVERSE else leave)
        a = _load(left, first, length, heads * K, start_k, K, C, BLOCK_K)
        b = _load(right, first, length, heads * V, start_v, V, C, BLOCK_V)
        update = _dot(tl.trans((a * weight[:, None]).to(a.dtype)), b, PRECISION)
        state = across * state + update
    _store(final + offset, state, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V)


@triton.jit
def _gates_inside(
    source, transition, mark, direct, first, length, heads, C: tl.constexpr, REVERSE: tl.constexpr
):
    """Return inside of one chunk, and the weights of the state in its outputs.

    REVERSE: transposed, with the weights of the inputs in the state after the chunk.
    """
    s = _load_gate(source, first, length, heads, C, 0.0)
    m = _load_gate(mark, first, length, heads, C, 0.0)
    d = _load_gate(direct, first, length, heads, C, 0.0)
    enter, leave, _ = _border_products(transition, first, length, heads, C)
    t = tl.arange(0, C)
    inside = m[:, None] * _products_between(transition, first, length, heads, C) * s[None, :]
    inside = tl.where(t[:, None] == t[None, :], d[:, None], inside)
    return (tl.trans(inside), s * leave) if REVERSE else (inside, m * enter)


@triton.jit
def output_kernel(
    left, right, value, source, transition, mark, direct, borders, out, length, heads, chunks,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One chunk of out = (q k^T * inside) v + mark enter q state; left, right, value are q, k, v.

    REVERSE: the gradient of v; left, right, value are k, q and the gradient of out.
    """
    program = tl.program_id(0).to(tl.int64)
    sequence, first = program // chunks, program % chunks * C
    start_v = tl.program_id(1) * BLOCK_V
    origin = sequence // heads * length * heads + sequence % heads
    border = borders + program * K * V
    scores = tl.zeros((C, C), transition.dtype.element_ty)
    read = tl.zeros((C, BLOCK_V), transition.dtype.element_ty)
    for start_k in range(0, K, BLOCK_K):
        a = _load(left + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)
        b = _load(right + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)
        scores += _dot(a, tl.trans(b), PRECISION)
        read += _dot(a, _load(border, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V), PRECISION)
    inside, weight = _gates_inside(
        source + origin, transition + origin, mark + origin, direct + origin,
        first, length, heads, C, REVERSE,
    )  # fmt: skip
    values = _load(value + origin * V, first, length, heads * V, start_v, V, C, BLOCK_V)
    result = _dot((scores * inside).to(values.dtype), values, PRECISION) + weight[:, None] * read
    _store(out + origin * V, result, first, length, heads * V, start_v, V, C, BLOCK_V)


@triton.jit
def query_key_kernel(
    q, k, v, source, transition, mark, direct, borders, grad_out, grad_borders,
    grad_q, grad_k, grad_enter, grad_leave, grad_across, length, heads, chunks,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q and k of one chunk, and of the products enter, leave and across."""
    program = tl.program_id(0).to(tl.int64)
    sequence, first = program // chunks, program % chunks * C
    start_k = tl.program_id(1) * BLOCK_K
    origin = sequence // heads * length * heads + sequence % heads
    acc_dtype = transition.dtype.element_ty
    grad_gated = tl.zeros((C, C), acc_dtype)  # gradient of q k^T * inside
    to_q = tl.zeros((C, BLOCK_K), acc_dtype)  # through the state before the chunk
    to_k = tl.zeros((C, BLOCK_K), acc_dtype)  # through the state after the chunk
    across = tl.zeros((BLOCK_K,), acc_dtype)
    for start_v in range(0, V, BLOCK_V):
        g_tile = _load(grad_out + origin * V, first, length, heads * V, start_v, V, C, BLOCK_V)
        v_tile = _load(v + origin * V, first, length, heads * V, start_v, V, C, BLOCK_V)
        offset = program * K * V
        state = _load(borders + offset, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V)
        grad_state = _load(grad_borders + offset, start_k, K, V, start_v, V, BLOCK_K, BLOCK_V)
        grad_gated += _dot(g_tile, tl.trans(v_tile), PRECISION)
        to_q += _dot(g_tile, tl.trans(state), PRECISION)
        to_k += _dot(v_tile, tl.trans(grad_state), PRECISION)
        across += tl.sum(state.to(acc_dtype) * grad_state.to(acc_dtype), 1)
    q_tile = _load(q + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)
    k_tile = _load(k + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)

    t = tl.arange(0, C)
    tiles = tl.num_programs(1)
    here = (origin + (first + t) * heads) * tiles + tl.program_id(1)
    tl.store(grad_enter + here, tl.sum(q_tile * to_q, 1), mask=first + t < length)
    tl.store(grad_leave + here, tl.sum(k_tile * to_k, 1), mask=first + t < length)
    tl.store(grad_across + program * tiles + tl.program_id(1), tl.sum(across))

    inside, enter = _gates_inside(
        source + origin, transition + origin, mark + origin, direct + origin,
        first, length, heads, C, False,
    )  # fmt: skip
    grad_scores = (grad_gated * inside).to(q_tile.dtype)
    to_q = _dot(grad_scores, k_tile, PRECISION) + enter[:, None] * to_q
    _store(grad_q + origin * K, to_q, first, length, heads * K, start_k, K, C, BLOCK_K)
    s = _load_gate(source + origin, first, length, heads, C, 0.0)
    _, leave, _ = _border_products(transition + origin, first, length, heads, C)
    to_k = _dot(tl.trans(grad_scores), q_tile, PRECISION) + (s * leave)[:, None] * to_k
    _store(grad_k + origin * K, to_k, first, length, heads * K, start_k, K, C, BLOCK_K)


@triton.jit
def gate_kernel(
    q, k, v, source, transition, mark, grad_out, grad_enter, grad_leave, grad_across,
    grad_source, grad_transition, grad_mark, grad_direct, length, heads, chunks,
    K: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates of one chunk."""
    program = tl.program_id(0).to(tl.int64)
    sequence, first = program // chunks, program % chunks * C
    origin = sequence // heads * length * heads + sequence % heads
    scores = tl.zeros((C, C), transition.dtype.element_ty)  # q k^T
    for start_k in range(0, K, BLOCK_K):
        q_tile = _load(q + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)
        k_tile = _load(k + origin * K, first, length, heads * K, start_k, K, C, BLOCK_K)
        scores += _dot(q_tile, tl.trans(k_tile), PRECISION)
    grad_gated = tl.zeros((C, C), transition.dtype.element_ty)  # gradient of q k^T * inside
    for start_v in range(0, V, BLOCK_V):
        g_tile = _load(grad_out + origin * V, first, length, heads * V, start_v, V, C, BLOCK_V)
        v_tile = _load(v + origin * V, first, length, heads * V, start_v, V, C, BLOCK_V)
        grad_gated += _dot(g_tile, tl.trans(v_tile), PRECISION)
    grad_inside = scores * grad_gated

    s = _load_gate(source + origin, first, length, heads, C, 0.0)
    m = _load_gate(mark + origin, first, length, heads, C, 0.0)
    to_enter = _load_gate(grad_enter + origin, first, length, heads, C, 0.0)
    to_leave = _load_gate(grad_leave + origin, first, length, heads, C, 0.0)
    enter, leave, _ = _border_products(transition + origin, first, length, heads, C)
    between = _products_between(transition + origin, first, length, heads, C)
    t = tl.arange(0, C)
    to_direct = tl.sum(tl.where(t[:, None] == t[None, :], grad_inside, 0.0), 1)
    to_mark = tl.sum(grad_inside * between * s[None, :], 1) + to_enter * enter
    to_source = tl.sum(grad_inside * between * m[:, None], 0) + to_leave * leave

    # A path through a transition starts at an input or the state before the chunk, and ends at an
    # output or the state after it: four kinds of paths.
    grad_between = tl.where(t[:, None] > t[None, :], grad_inside, 0.0) * m[:, None] * s[None, :]
    to_transition = tl.sum(between * _dot(tl.trans(between), grad_between, PRECISION), 1)
    to_transition += enter * tl.sum(between * (to_enter * m)[:, None], 0)
    to_transition += leave * tl.sum(between * (to_leave * s)[None, :], 1)
    to_transition += enter * leave * tl.load(grad_across + program)

    here = origin + (first + t) * heads
    exists = first + t < length
    tl.store(grad_source + here, to_source, mask=exists)
    tl.store(grad_transition + here, to_transition, mask=exists)
    tl.store(grad_mark + here, to_mark, mask=exists)
    tl.store(grad_direct + here, to_direct, mask=exists)
