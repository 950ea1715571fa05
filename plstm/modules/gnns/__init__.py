"""GNNs, one per file, that PyTorch Geometric does not offer in this form.

Each is called as `forward(x, edge_index, edge_attr=None, batch=None)` with nodes x (N, D). The
files import PyTorch Geometric, which is slow; GNNModel imports only the one it needs.
"""
