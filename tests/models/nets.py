"""Small mixers by name, one per kind that a model takes."""

from functools import partial

from plstm import PLSTM1d, PLSTM2d, SoftmaxAttention

GRID = {
    "plstm": [partial(PLSTM2d, num_heads=2, mode="P"), partial(PLSTM2d, num_heads=2, mode="D")],
    "attention": [partial(SoftmaxAttention, num_heads=2, rotary=True)],
}
SEQUENCE = {
    "plstm": [partial(PLSTM1d, num_heads=2, conv_width=3)],
    "lanes": [partial(PLSTM1d, num_heads=2, lanes=2)],
    "attention": [partial(SoftmaxAttention, num_heads=2, causal=True, rotary=True)],
}
SEQUENCE["mixed"] = SEQUENCE["plstm"] + SEQUENCE["attention"]
