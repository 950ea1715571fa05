"""Properties of random graphs that depend on distances between nodes.

They need long-range interactions: the largest distance depends on all nodes.
"""

from functools import cached_property

import numpy as np
import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from torchmetrics.functional import mean_squared_error

from plstm.checks import check_choice, check_positive
from plstm.graph.storing import StoredGraphs
from tasks.data import SPLITS
from tasks.graphs import GraphData
from tasks.random_graphs import draw_graph
from tasks.regression import Regression
from tasks.targets import Score

TARGETS = ("diameter", "eccentricity", "shortest_paths")
MAX_NODES = 300  # per graph, as all distances are computed


def draw_property(
    seed: int, split: int, index: int, *, target: str, num_nodes: tuple[int, int], rewired: float
) -> Data:
    """Draw one graph with its targets.

    Example: the eccentricities of a line of four nodes are 3, 2, 2, 3, divided by the maximum, 3.

    Args:
        seed: Seed of the data.
        split: Index of the split.
        index: Index of the graph in its split.
        target: "diameter" (of the graph), "eccentricity" (the largest distance to any node) or
            "shortest_paths" (the distance to a source), the latter two per node.
        num_nodes: Minimum and maximum number of nodes.
        rewired: Fraction of the edges that are rewired, see `tasks.random_graphs.draw_graph`.

    Returns:
        Data with edge_index (both directions), x: a random identifier in [0, 1] and, for shortest
        paths, an indicator of the source; y (1,) or (N,): distances over num_nodes[1] - 1, in
        [0, 1].

    Source: arXiv 2004.05718 (generator) and 2210.09789 (targets), where distances are divided by
    the largest one of the training set, and graphs need not be connected.
    """
    rng = np.random.default_rng([seed, split, index])
    size = int(rng.integers(num_nodes[0], num_nodes[1] + 1))
    adjacency = draw_graph(rng, size, rewired)
    distance = shortest_path(adjacency, unweighted=True)
    identifier, source = rng.random(size), int(rng.integers(size))
    features = [identifier, np.arange(size) == source]
    y = {
        "diameter": distance.max(keepdims=True)[0],
        "eccentricity": distance.max(0),
        "shortest_paths": distance[source],
    }[target]
    return Data(
        x=_float(np.stack(features[: 1 + (target == "shortest_paths")], 1)),
        edge_index=torch.from_numpy(np.stack(adjacency.nonzero())),
        y=_float(y / (num_nodes[1] - 1)),
    )


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float()


class PropertiesData(GraphData):
    """Connected random graphs of ten families, with targets that depend on distances.

    Args:
        target: "diameter", "eccentricity" or "shortest_paths", see `draw_property`.
        num_nodes: Minimum and maximum number of nodes of a graph.
        rewired: Fraction of the edges that are rewired, which makes graphs distinct.
        train_size: Training graphs per epoch.
        val_size: Number of validation graphs.
        test_size: Number of test graphs.
        kwargs: See `GraphData`.

    Raises:
        ValueError: target is unknown; an argument is out of range.
    """

    def __init__(
        self,
        target: str = "eccentricity",
        num_nodes: tuple[int, int] = (25, 35),
        rewired: float = 0.02,
        train_size: int = 5120,
        val_size: int = 640,
        test_size: int = 1280,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        names = ("target", "num_nodes", "rewired", "train_size", "val_size", "test_size")
        self.save_hyperparameters(*names, logger=False)
        check_choice("PropertiesData", "target", target, TARGETS)
        check_positive(
            "PropertiesData", train_size=train_size, val_size=val_size, test_size=test_size
        )
        if not 3 <= num_nodes[0] <= num_nodes[1] <= MAX_NODES:
            raise ValueError(
                "PropertiesData: num_nodes must be the minimum and the maximum number, both in "
                f"3..{MAX_NODES}, got {num_nodes[0]} and {num_nodes[1]}"
            )
        if not 0 <= rewired <= 0.5:
            raise ValueError(
                f"PropertiesData: rewired must be a fraction from 0 to 0.5, got {rewired}"
            )

    @cached_property
    def dataset(self) -> StoredGraphs:
        h = self.hparams
        how = {"target": h.target, "num_nodes": h.num_nodes, "rewired": h.rewired}
        return self.prepared(
            [
                draw_property(self.seed, number, index, **how)
                for number, split in enumerate(SPLITS)
                for index in range(h[f"{split}_size"])
            ]
        )

    @property
    def out_dim(self) -> int:
        return 1

    @property
    def target_names(self) -> list[str]:
        return [self.hparams.target]

    @property
    def training_targets(self) -> Tensor:
        return self.dataset.y[: int(self.dataset.slices["y"][self.hparams.train_size])]

    @property
    def per_node(self) -> bool:
        """Whether every node has a target."""
        return self.hparams.target != "diameter"

    @property
    def net_args(self) -> dict[str, int | bool]:
        return super().net_args | {"per_node": self.per_node}

    def predict_dataloader(self) -> DataLoader:
        """The test set.

        Raises:
            ValueError: several processes predict nodes, each for some of the graphs.
        """
        if self.per_node and self.shard.count > 1:
            raise ValueError(
                "PropertiesData: one process must predict nodes, to save them in their order, got "
                f"{self.shard.count}; set --trainer.devices 1"
            )
        return self.test_dataloader()

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        ends = np.cumsum([self.hparams[f"{split}_size"] for split in SPLITS])
        parts = np.split(np.arange(ends[-1]), ends[:-1])
        return dict(zip(SPLITS, parts, strict=True))


def log10_mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Logarithm of the mean squared error, the usual metric of this task."""
    return mean_squared_error(predictions, targets).log10()


class PropertyRegression(Regression):
    """Regression with the metric `log10_mse`, over all nodes of all graphs."""

    main_metric = "log10_mse"
    scores = Regression.scores | {"log10_mse": Score(log10_mse, needs_two_values=False)}
