"""The stacks of plstm.modules.gnns against their formulas, and odd graphs through every GNN."""

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import models

from plstm.models.gnn import GNNS, GNNModel
from plstm.modules.gnns.attentive_fp import AttentiveFP
from plstm.modules.gnns.dmpnn import DMPNN, reverse_edges
from plstm.modules.gnns.gps import GPS
from plstm.modules.gnns.lstm_gnn import LSTMGNN
from plstm.modules.gnns.mpnn import MPNN
from plstm.modules.gnns.pna import PNA
from tests.helpers import assert_close

WIDTH = 8
EDGES = torch.tensor([[0, 1, 1, 2, 2, 0, 4, 0], [1, 0, 2, 1, 0, 2, 0, 4]])  # 3 is isolated


def features(nodes: int = 5) -> Tensor:
    return torch.randn(nodes, WIDTH, generator=torch.Generator().manual_seed(1)).double()


def adjacency(edge_index: Tensor, nodes: int) -> Tensor:
    """A[i, j] = number of edges from j to i."""
    matrix = torch.zeros(nodes, nodes, dtype=torch.float64)
    matrix.index_put_((edge_index[1], edge_index[0]), matrix.new_ones(()), accumulate=True)
    return matrix


def graph(nodes: int, edge_index: Tensor, edge_dim: int) -> Data:
    data = Data(x=torch.randn(nodes, 3), edge_index=edge_index)
    if edge_dim:
        data.edge_attr = torch.randn(edge_index.shape[1], edge_dim)
    return data


def make(gnn: str, **options: object) -> GNNModel:
    torch.manual_seed(0)
    return GNNModel(3, 2, dim=WIDTH, depth=2, gnn=gnn, **options)


def test_mpnn_is_its_formula() -> None:
    net, x, a = MPNN(WIDTH, WIDTH, num_layers=2).double(), features(), adjacency(EDGES, 5)
    want = x
    for i, conv in enumerate(net.convs):
        want = want @ conv.lin_root.weight.T + a @ want @ conv.lin_rel.weight.T + conv.lin_rel.bias
        want = want.relu() if i == 0 else want
    assert_close("nodes", net(x, EDGES), want)


def test_dmpnn_is_its_formula() -> None:
    """A state per direction of an edge, by loops; node 3 has no edges."""
    net, x = DMPNN(WIDTH, WIDTH, num_layers=3, edge_dim=2).double(), features()
    attr = torch.randn(EDGES.shape[1], 2, dtype=torch.float64)
    edges = EDGES.T.tolist()
    first = [net.edge_in(torch.cat([x[i], a])) for (i, _), a in zip(edges, attr, strict=True)]
    states = [h.relu() for h in first]
    none = torch.zeros(WIDTH, dtype=torch.float64)
    for _ in range(2):
        heard = [
            sum((h for h, (k, to) in zip(states, edges, strict=True) if to == i and k != j), none)
            for i, j in edges
        ]
        states = [(f + net.message(m)).relu() for f, m in zip(first, heard, strict=True)]
    arrived = [
        sum((h for h, (_, to) in zip(states, edges, strict=True) if to == i), none)
        for i in range(5)
    ]
    want = net.node_out(torch.cat([x, torch.stack(arrived)], 1)).relu()
    assert_close("nodes", net(x, EDGES, attr), want)


@pytest.mark.parametrize("edges", [[[], []], [[0, 1, 2], [1, 0, 0]], [[2, 0, 1, 0], [0, 1, 0, 2]]])
def test_reverse_edges(edges: list) -> None:
    index = torch.tensor(edges, dtype=torch.int64)
    reverse, found = reverse_edges(index, 3)
    pairs = list(map(tuple, index.T.tolist()))
    for number, (a, b) in enumerate(pairs):
        assert found[number] == ((b, a) in pairs)
        if found[number]:
            assert pairs[reverse[number]] == (b, a)


def test_lstm_gnn_is_its_formula() -> None:
    """Node 0 has three neighbors, node 3 none."""
    net, c, a = LSTMGNN(WIDTH, WIDTH, num_layers=3).double(), features(), adjacency(EDGES, 5)
    got, h, cell = net(c, EDGES), torch.zeros_like(c), net.cell
    mean = a / a.sum(1, keepdim=True).clamp(min=1)
    for _ in range(3):
        gates = mean @ h @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    assert_close("nodes", got, c.tanh())


def test_lstm_gnn_shares_weights_over_steps() -> None:
    sizes = {len(nn.utils.parameters_to_vector(LSTMGNN(8, 8, n).parameters())) for n in (1, 5)}
    assert len(sizes) == 1
    with pytest.raises(ValueError, match="in_channels must equal hidden_channels"):
        LSTMGNN(4, 8, 1)


@pytest.mark.parametrize("nodes", [5, 60])
def test_pna_equals_that_of_pyg_with_the_histogram(nodes: int) -> None:
    """One batch seen in training mode makes PyG's normalizers; evaluation moves nothing."""
    dense = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(0)) < 0.4
    edge_index = EDGES if nodes == 5 else dense.nonzero().T
    net, x = PNA(WIDTH, WIDTH, 2).double(), features(nodes)
    histogram = adjacency(edge_index, nodes).sum(1).long().bincount()
    want = models.PNA(
        WIDTH,
        WIDTH,
        2,
        aggregators=["mean", "min", "max", "std"],
        scalers=["identity", "amplification", "attenuation"],
        deg=histogram,
    ).double()
    before = net.eval()(x, edge_index)
    net.train()(x, edge_index)
    state = {name: value for name, value in net.state_dict().items() if name != "degrees"}
    want.load_state_dict({**state, **{k: v for k, v in want.state_dict().items() if "deg" in k}})
    after = net.eval()(x, edge_index)
    assert_close("nodes", after, want.eval()(x, edge_index), 1e-6)  # normalizers are float32
    assert not torch.allclose(before, after)
    net(x[:2], torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(net(x, edge_index), after)


def test_pna_counts_all_batches_and_two_forwards_before_one_backward() -> None:
    net, x = PNA(WIDTH, WIDTH, 2).double(), features()
    (net(x, EDGES).sum() + net(x, EDGES[:, :2]).sum()).backward()
    assert net.degrees[:4].tolist() == [4, 3, 2, 1]
    scaler, degrees = net.convs[0].aggr_module, torch.tensor([0.0] * 4 + [1] * 3 + [2] * 2 + [3])
    assert_close("delta", scaler.avg_deg_log[0], (degrees + 1).log().mean(), 1e-6)
    assert_close("mean", scaler.avg_deg_lin[0], degrees.mean(), 1e-6)


@pytest.mark.parametrize("edge_dim", [0, 4])
def test_gps_attention_reaches_unconnected_nodes_of_the_same_graph_only(edge_dim: int) -> None:
    net, x = GPS(WIDTH, WIDTH, 1, heads=2, edge_dim=edge_dim).double().eval(), features()
    edges = torch.zeros(2, 0, dtype=torch.int64)
    attr = torch.zeros(0, edge_dim, dtype=torch.float64) if edge_dim else None
    batch, moved = torch.tensor([0, 0, 0, 1, 1]), x.clone()
    moved[0] += 1
    change = net(moved, edges, attr, batch) - net(x, edges, attr, batch)
    assert (change.norm(dim=1) > 1e-8).tolist() == [True, True, True, False, False]
    with pytest.raises(ValueError, match="a multiple of heads, got 8, 8 and 3 heads"):
        GPS(WIDTH, WIDTH, 1, heads=3)


def test_attentive_fp_returns_graphs() -> None:
    net = AttentiveFP(WIDTH, WIDTH, 2, num_timesteps=1).double()
    batch = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    x = features(10)
    together = net(x, torch.cat([EDGES, EDGES + 5], 1), batch=batch)
    assert together.shape == (2, WIDTH)
    assert_close("alone", net(x[5:], EDGES), together[1:])


@pytest.mark.parametrize("edge_dim", [0, 2])
@pytest.mark.parametrize("gnn", GNNS)
def test_odd_graphs(gnn: str, edge_dim: int) -> None:
    """One node, no edges at all, an isolated node: finite, and the same in and out of a batch."""
    net, none = make(gnn, edge_dim=edge_dim), torch.zeros(2, 0, dtype=torch.int64)
    items = [graph(1, none, edge_dim), graph(3, none, edge_dim), graph(5, EDGES, edge_dim)]
    for data in [*items, Batch.from_data_list(items[:2]), Batch.from_data_list(items[:1])]:
        net.zero_grad()
        net(data).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
    together = net.eval()(Batch.from_data_list(items))
    assert_close("alone", torch.cat([net(item) for item in items]), together, 1e-4)


@pytest.mark.parametrize("gnn", GNNS)
def test_neighbors_matter_and_their_order_does_not(gnn: str) -> None:
    net, data = make(gnn).eval(), graph(5, EDGES, 0)
    shuffled = data.clone()
    shuffled.edge_index = EDGES[:, torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])]
    assert_close("shuffled", net(shuffled), net(data), 1e-5)
    encoded = features().float()
    fewer = net.gnn(encoded, EDGES[:, 2:])
    assert not torch.allclose(net.gnn(encoded, EDGES), fewer, rtol=1e-3)


@pytest.mark.parametrize("gnn", ["GAT", "PNA", "GPS", "AttentiveFP"])
def test_edge_features_matter(gnn: str) -> None:
    net, data = make(gnn, edge_dim=2).eval(), graph(5, EDGES, 2)
    other = data.clone()
    other.edge_attr = data.edge_attr + torch.randn_like(data.edge_attr)
    assert (net(data) - net(other)).abs().max() > 1e-5
