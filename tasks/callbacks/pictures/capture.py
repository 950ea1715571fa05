"""Observe the layers of a net while it runs on an example."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

Seen = TypeVar("Seen")


def first_layers(net: nn.Module, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """The first layer of a type, or the first of each `mode`, by its name in the net."""
    chosen: dict[object, tuple[str, nn.Module]] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, kind):
            chosen.setdefault(getattr(layer, "mode", None), (name, layer))
    return dict(chosen.values())


def observe(
    net: nn.Module, inputs: object, layers: Iterable[nn.Module], look: Callable[..., Seen]
) -> list[Seen]:
    """Run a net, compiled or not, and observe the arguments of some of its layers.

    Args:
        net: The net, called with `inputs`.
        inputs: A batch.
        layers: Layers of the net.
        look: Called with a layer and its arguments just before the layer.

    Returns:
        What `look` returned, for every layer.
    """
    layers, seen = list(layers), {}

    def hook(layer: nn.Module, args: tuple[object, ...]) -> None:
        seen[layer] = look(layer, *args)

    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code does not call hooks
            net(inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return [seen[layer] for layer in layers]
