"""Message-passing stacks, one per file, that PyTorch Geometric has no ready class for.

Each maps nodes x (N, D) by `forward(x, edge_index, edge_attr=None, batch=None)`. The files import
PyTorch Geometric, which is slow; GNNModel loads the one it needs.
"""
