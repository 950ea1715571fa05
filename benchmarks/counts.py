"""Operations and bytes of every form, computed from sizes.

Operations are those of a forward and a backward pass: two per multiply-add, and twice the forward
pass for the backward pass, since the gradient of a product is two products. Recomputation does not
count. Products of gates are omitted where they are negligible.

Bytes are the minimum traffic between memory and processor: inputs are read in both passes and get
gradients, the output is written and its gradient read, and what a form stores between its products
is written and read in both passes.

Letters: K and V widths of keys and values per head, X columns of a grid, y one of its rows, S
source and T transition gates.
"""

from typing import NamedTuple


class Cost(NamedTuple):
    """Cost of a forward and a backward pass."""

    flops: float
    bytes: float


def training(flops: float, inputs: float, outputs: float, kept: float, itemsize: int = 4) -> Cost:
    """Cost from the operations of the forward pass and numbers of elements."""
    return Cost(3 * flops, itemsize * (3 * inputs + 2 * outputs + 5 * kept))


def plstm_1d_cost(
    form: str, batch: int, length: int, heads: int, width: int, itemsize: int = 4
) -> Cost:
    """The recurrence on a sequence with K = V = width: "naive", "chunk" or "triton"."""
    nodes, state = batch * length * heads, width * width
    chunk = min(64, max(16, width), length)  # a chunk is as long as the state is wide
    chunked = nodes * (4 * chunk * width + 4 * state)
    flops, kept = {
        # 2 K V each for the outer product, its sum with the old state, and the read-out
        "naive": (6 * nodes * state, nodes * state),
        # scores and outputs inside a chunk, update of the state and its read-out
        "chunk": (chunked, nodes * (2 * chunk + state / chunk)),
        "triton": (chunked, nodes * state / chunk),  # scores stay on chip
    }[form]
    return training(flops, nodes * (3 * width + 4), nodes * width, kept, itemsize)


def plstm_2d_cost(
    form: str,
    batch: int,
    rows: int,
    columns: int,
    heads: int,
    width: int,
    itemsize: int = 4,
    corners: int = 4,
    chunk_tokens: int = 512,
) -> Cost:
    """The recurrence on a grid with K = V = width, in any form of `plstm_2d`."""
    nodes, state = batch * rows * columns * heads, width * width
    block_rows = min(rows, max(1, chunk_tokens // columns))
    flops, kept = {
        # two edges: T (2 x 2), k v^T and its source, the two states that are read, their read-out
        "naive": (nodes * corners * 18 * state, nodes * corners * 2 * state),
        "rows": _inside(nodes, rows, columns, width, corners),
        "chunk": _chunk_2d(nodes, rows, block_rows, columns, width, corners),
        # scores and values, and 10 operations per corner and gating weight above or below a row
        "dense": (nodes * rows * columns * (4 * width + 5 * corners), 0),
        # k v^T, two transitions, a read-out of the sum: 16 operations per state element
        "scan": (nodes * corners * 16 * state, 0),
        # scores and values, and about 20 operations of the recurrence per gating weight
        "triton": (nodes * rows * columns * (4 * width + 20), 0),
    }[form]
    inputs = nodes * (3 * width + 8 * corners + 1)
    return training(flops, inputs, nodes * width, kept, itemsize)


def _inside(nodes: float, rows: int, columns: int, width: int, corners: int) -> tuple[float, float]:
    """Scores, their product with the values, and the gating matrix of rows x columns tokens.

    Row y of the gating matrix of a corner is one product of two X x X matrices (transition and
    read-out of states) with the X x (y X) matrix of the rows before.
    """
    tokens = rows * columns
    gating = corners * 2 * columns * (rows - 1) * columns
    return nodes * (4 * tokens * width + gating), 2 * nodes * tokens


def _chunk_2d(
    nodes: float, rows: int, block_rows: int, columns: int, width: int, corners: int
) -> tuple[float, float]:
    """Cost inside blocks of rows, and per corner of X states updated and read between blocks."""
    flops, kept = _inside(nodes, block_rows, columns, width, corners)
    border = corners * columns * width * width
    crossings = 1 - block_rows / rows
    return (
        flops + nodes * 4 * border * crossings,
        kept + nodes * border / columns / block_rows * crossings,
    )


def plstm_dag_cost(
    form: str,
    graphs: int,
    nodes: int,
    edges: int,
    pairs: int,
    heads: int,
    width: int,
    itemsize: int = 4,
    joined: float = 0,
    products: float = 0,
) -> Cost:
    """The recurrence on `graphs` DAGs of equal size, counts are per graph, K = V = width.

    "naive" and "levels" store a state per edge; "reach" computes the entries of the gating matrices
    at the `joined` pairs of nodes, by `products` of transitions.
    """
    state, n = width * width, graphs * heads
    recurrent = (n * (2 * edges + 2 * pairs + 2 * edges) * state, n * edges * state)
    flops, kept = {
        "naive": recurrent,
        "levels": recurrent,
        "reach": (n * (2 * products + 4 * joined * width), n * (products + joined)),
    }[form]
    inputs = n * (nodes * (3 * width + 1) + 2 * edges + pairs)
    return training(flops, inputs, n * nodes * width, kept, itemsize)


def attention_cost(
    batch: int, length: int, heads: int, width: int, itemsize: int = 4, causal: bool = False
) -> Cost:
    """Softmax attention; its scores can stay on chip."""
    pairs = length * (length + 1) / 2 if causal else length**2
    flops, numbers = batch * heads * pairs * 4 * width, batch * length * heads * width
    return training(flops, 3 * numbers, numbers, 0, itemsize)


def layer_cost(
    tokens: float, dim: int, gates: int, recurrence: list[Cost], itemsize: int = 4
) -> Cost:
    """A mixer of width dim: q, k, v, output and gate projections around a recurrence.

    Args:
        tokens: Positions or nodes of the whole batch.
        dim: Model width; also the total width of all heads.
        gates: Gate logits per token.
        recurrence: Cost of every form; the layer counts the fewest operations and the fewest bytes
            of any form.
        itemsize: Bytes per element.
    """
    outside = linear_cost(tokens, dim, 4 * dim + gates, itemsize)
    flops, moved = (min(column) for column in zip(*recurrence, strict=True))
    return Cost(outside.flops + flops, outside.bytes + moved)


def linear_cost(tokens: float, in_dim: int, out_dim: int, itemsize: int = 4) -> Cost:
    """A linear map, or several with the same input."""
    inputs = tokens * in_dim + in_dim * out_dim
    return training(2 * tokens * in_dim * out_dim, inputs, tokens * out_dim, 0, itemsize)
