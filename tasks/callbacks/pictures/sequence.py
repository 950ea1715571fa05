"""Plot of the gates between positions of a sequence."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from plstm.layers.plstm_1d import PLSTM1d
from tasks.callbacks.pictures.capture import first_layers, observe
from tasks.callbacks.pictures.reach import HEADS, draw_reach, draw_scale, sequence_reach

POSITIONS = 48  # number of positions drawn, from the first


def gating_maps(
    net: nn.Module, tokens: Tensor, names: Sequence[str] | None = None
) -> Figure | None:
    """Gates between the first positions of a sequence, per head, of the first layer.

    None for a net without PLSTM1d, for inputs that are not tokens (such a layer over a grid), and
    for a layer with lanes, whose gates are matrices.

    Args:
        net: Maps tokens (B, L) to logits.
        tokens: A batch; the first sequence is drawn.
        names: Text of every token of the vocabulary.
    """
    layers = {n: layer for n, layer in first_layers(net, PLSTM1d).items() if layer.lanes == 1}
    if not layers or tokens.ndim != 2:
        return None
    tokens = tokens[:1, :POSITIONS]
    ((name, layer),) = layers.items()
    (gates,) = observe(net, tokens, [layer], lambda layer, x: layer.gates(x))
    reach = sequence_reach(gates)[:HEADS]
    columns = 1 if len(reach) == 1 else 2
    figure = Figure(
        figsize=(4.6 * columns + 1.2, 4.7 * -(-len(reach) // columns) + 0.5), layout="constrained"
    )
    figure.suptitle(f"Gates between positions ({name})")
    panels = figure.subplots(-(-len(reach) // columns), columns, squeeze=False).ravel()
    labels = None if names is None else [names[token] for token in tokens[0].tolist()]
    for number, (axes, one) in enumerate(zip(panels, reach, strict=False), 1):
        _draw(axes, one, labels)
        axes.set_title(f"head {number} of {layer.num_heads}")
    for axes in panels[len(reach) :]:
        axes.set_axis_off()
    draw_scale(figure, ax=list(panels), aspect=40, shrink=0.8)
    return figure


def _draw(axes: Axes, reach: Tensor, labels: list[str] | None) -> None:
    draw_reach(axes, reach)
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    if labels is not None:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(range(len(labels)), labels, fontsize=6, parse_math=False)
        axes.tick_params(length=0)
