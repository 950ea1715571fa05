"""A network of PyTorch Geometric whose second layer is a GCNConv or a PLSTMGraph, on random trees.

The root of a tree is red or blue, and every node has to tell its colour. A message-passing layer
reaches the neighbors of a node, a pLSTM layer everything below it.
"""

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv

from plstm import PLSTMGraph
from plstm.graph.pyg import DagData, ToDag, line_graph


class Network(nn.Module):
    def __init__(self, with_plstm: bool, dim: int = 32) -> None:
        super().__init__()
        self.first, self.head = GCNConv(3, dim), nn.Linear(dim, 2)
        far = {"mode": "D", "transition_bias": 5.0, "transition_std": 0.0}  # T = 1
        self.second = PLSTMGraph(dim, 4, **far) if with_plstm else GCNConv(dim, dim)
        self.with_plstm = with_plstm

    def forward(self, data: DagData) -> Tensor:
        x = self.first(data.x, data.edge_index).relu()
        edges = line_graph(data) if self.with_plstm else data.edge_index
        return self.head(x + self.second(x, edges))


def random_tree(nodes: int = 40) -> Data:
    """A tree with long branches: every node hangs on one of the two before it."""
    child = torch.arange(1, nodes)
    parent = (child - torch.randint(1, 3, child.shape)).clamp(min=0)
    edges, colour = torch.stack([parent, child]), torch.randint(2, (1,))
    x = torch.eye(3)[2].repeat(nodes, 1)
    x[0] = torch.eye(3)[colour]
    return Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=colour.repeat(nodes))


def main(epochs: int = 8) -> None:
    for with_plstm in (False, True):
        torch.manual_seed(0)
        trees = [ToDag("given")(random_tree()) for _ in range(96)]
        net = Network(with_plstm)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(epochs):
            for batch in DataLoader(trees[:64], batch_size=16, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(batch), batch.y).backward()
                optimizer.step()
        test = next(iter(DataLoader(trees[64:], batch_size=32)))
        accuracy = (net(test).argmax(1) == test.y).float().mean()
        print(f"{type(net.second).__name__}: {accuracy:.3f} of the nodes are right")


if __name__ == "__main__":
    main()
