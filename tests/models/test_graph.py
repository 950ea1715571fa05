"""GraphModel and GNNModel: batches, directions, permutation, contract, errors."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from plstm.graph import LineGraph, ToDag
from plstm.graph.position_codes import AddPositionCodes
from plstm.graph.prepared import add_plans
from plstm.layers.plstm_graph import PLSTMGraph
from plstm.models.gnn import GNNS, GNNModel
from plstm.models.graph import GraphModel
from plstm.modules.graph import POOLINGS, GraphEncoder, GraphReadout, degree_code
from tests.graph.graphs import molecule
from tests.helpers import assert_close

IN_DIM, OUT_DIM, EDGE_DIM = 3, 4, 2
KINDS = ["ring", "node", "apart", "tree"]
MIXERS = [partial(PLSTMGraph, num_heads=2, mode=mode) for mode in "PD"]


def molecules(x: bool = True, edge_attr: bool = True) -> list[Data]:
    """Prepared graphs; edge features are equal in both directions."""
    items = []
    for kind in KINDS:
        edge_index, size = molecule(kind)
        item = Data(edge_index=edge_index, num_nodes=size, y=torch.tensor([0]))
        if x:
            item.x = torch.randn(size, IN_DIM)
        if edge_attr:
            half = torch.randn(edge_index.shape[1] // 2, EDGE_DIM)
            item.edge_attr = torch.cat([half, half])
        items.append(ToDag()(item))
    return items


def make(kind: str = "plstm", in_dim: int = IN_DIM, **options: object) -> nn.Module:
    if kind == "plstm":
        options = {"mixers": MIXERS, "depth": 4, **options}
        return GraphModel(in_dim, OUT_DIM, dim=8, **options)
    return GNNModel(in_dim, OUT_DIM, dim=8, gnn=kind, **{"depth": 2, **options})


@pytest.mark.parametrize("edge_dim", [0, EDGE_DIM])
@pytest.mark.parametrize("kind", ["plstm", *GNNS])
def test_contract(kind: str, edge_dim: int) -> None:
    model, batch = make(kind, edge_dim=edge_dim), Batch.from_data_list(molecules())
    out = model(batch)
    assert out.shape == (len(KINDS), OUT_DIM)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    model.eval()
    out, other = model(batch), make(kind, edge_dim=edge_dim).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), out)
    assert torch.equal(copy.deepcopy(model)(batch), out)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("kind", ["plstm", "GIN"])
def test_batch_equals_one_by_one(kind: str, pooling: str) -> None:
    model, items = make(kind, pooling=pooling).eval(), molecules()
    together = model(Batch.from_data_list(items))
    for item, row in zip(items, together, strict=True):
        assert_close("alone", model(item)[0], row, 1e-5)


@pytest.mark.parametrize("kind", ["plstm", *GNNS])
def test_every_net_reads_position_codes(kind: str) -> None:
    items = [AddPositionCodes(2, 3)(item) for item in molecules()]
    model, batch = make(kind, code_dim=5).double().eval(), Batch.from_data_list(items)
    batch.x, batch.position_code = batch.x.double(), batch.position_code.double()
    out = model(batch)
    batch.position_code = batch.position_code * 2
    moved = (model(batch) - out).abs().amax(1) > 1e-9
    assert torch.equal(moved, batch.position_code.new_tensor([1, 0, 1, 1]).bool())  # not one node


@pytest.mark.parametrize("kind", ["plstm", "GIN"])
def test_nodes_are_read_out_alone(kind: str) -> None:
    model, items = make(kind, per_node=True).eval(), molecules()
    together = model(Batch.from_data_list(items))
    assert together.shape == (sum(item.num_nodes for item in items), OUT_DIM)
    assert_close("alone", torch.cat([model(item) for item in items]), together, 1e-5)
    per_graph = make(kind).eval()
    per_graph.load_state_dict(model.state_dict())
    per_graph.readout._pooled = lambda x, batch, num_graphs: x
    assert torch.equal(per_graph(Batch.from_data_list(items)), together)


def test_relabelling_keeps_the_logits() -> None:
    """Nodes renumbered with the DAG kept."""
    model, item = make(edge_dim=EDGE_DIM).double(), molecules()[0]
    item.x, item.dag_edge_attr = item.x.double(), item.dag_edge_attr.double()
    other, name = item.clone(), torch.randperm(item.num_nodes)
    other.x = item.x[torch.argsort(name)]
    other.edge_index, other.dag_edge_index = name[item.edge_index], name[item.dag_edge_index]
    assert_close("logits", model(other), model(item), 1e-10)


def test_graphs_without_features_and_duck_typing() -> None:
    model, batch = make(in_dim=1), Batch.from_data_list(molecules(x=False, edge_attr=False))
    fields = ("edge_index", "dag_edge_index", "line_index", "tree_index", "edge_level")
    fields += ("num_nodes", "num_graphs", "batch")
    plain = SimpleNamespace(**{name: getattr(batch, name) for name in fields})
    assert torch.equal(model(plain), model(batch))
    assert torch.isfinite(make("GIN", in_dim=1).eval()(batch)).all()


@pytest.mark.parametrize("kind", ["plstm", "GIN"])
def test_compiles_without_graph_breaks(kind: str) -> None:
    """Planning in numpy used to be traced, and to fail."""
    model, items = make(kind, edge_dim=EDGE_DIM, depth=2).double().eval(), molecules()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for batch in (Batch.from_data_list(items), add_plans(Batch.from_data_list(items[:2]))):
        for name in ("x", "edge_attr", "dag_edge_attr"):
            batch[name] = batch[name].double()
        assert_close("logits", compiled(batch), model(batch), 1e-10)


class Spy(nn.Module):
    """A mixer that notes the direction it is run in."""

    def __init__(self, dim: int, name: str, seen: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.seen = name, seen

    def forward(self, x: Tensor, graph: LineGraph, edge_attr: Tensor | None = None) -> Tensor:
        along = bool((graph.edge_index[0] < graph.edge_index[1]).all())
        self.seen.append((self.name, along))
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("names", "want"),
    [("PD", [("P", True), ("D", True), ("P", False), ("D", False)]), ("P", [True, False] * 2)],
)
def test_direction_flips_when_the_mixers_are_used_up(names: str, want: list) -> None:
    seen: list[tuple[str, bool]] = []
    edge_index, size = molecule("ring")
    item = ToDag("given")(Data(x=torch.randn(size, IN_DIM), edge_index=edge_index))
    make(mixers=[partial(Spy, name=name, seen=seen) for name in names])(item)
    assert seen == [w if isinstance(w, tuple) else ("P", w) for w in want]


def test_information_flows_both_ways() -> None:
    """Any node of a path changes any other one's features within two blocks."""
    nodes = torch.arange(6)
    edges = torch.stack([nodes[:-1], nodes[1:]])
    item = ToDag("given")(
        Data(x=torch.randn(6, IN_DIM), edge_index=torch.cat([edges, edges.flip(0)], 1))
    )
    model = make(depth=2, mixers=MIXERS[:1]).double()
    model.readout = nn.Module()
    model.readout.forward = lambda x, batch, num_graphs: x  # look at the nodes
    x = item.x.double().requires_grad_()
    item.x = x
    out = model(item)
    for node in (0, 5):
        (grad,) = torch.autograd.grad(out[node, 0], x, retain_graph=True)
        assert (grad.abs().sum(1) > 0).all()


def test_degree_code() -> None:
    code = degree_code(torch.tensor([0, 1, 2, 7, 40]), 6)
    assert code.shape == (5, 6)
    assert torch.equal(code[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert torch.cdist(code, code).add(torch.eye(5)).min() > 0.1  # degrees differ
    assert degree_code(torch.tensor([3]), 5).shape == (1, 5)


def test_readout_pools_per_graph() -> None:
    x, batch = torch.randn(5, 8), torch.tensor([0, 0, 2, 2, 2])
    graphs = [x[batch == i] for i in (0, 2)]
    mean, total = (torch.stack([f(g, 0) for g in graphs]) for f in (torch.mean, torch.sum))
    for pooling, want in {"mean": mean, "sum": total, "both": torch.cat([mean, total], 1)}.items():
        readout = GraphReadout(8, 3, pooling)
        readout.hidden = readout.out = nn.Identity()
        readout.norm = nn.Identity()
        got = readout(x, batch, 3)
        assert_close(pooling, got[[0, 2]], nn.functional.gelu(want), 1e-6)
        assert torch.equal(got[1], torch.zeros_like(got[1]))  # a graph without nodes


def test_one_graph_trains() -> None:
    """A last batch of one graph is normalized with the running statistics."""
    readout, x = GraphReadout(8, 3), torch.randn(4, 8)
    assert readout.training
    out = readout(x, None, 1)
    assert torch.equal(out, readout.eval()(x, None, 1))


def test_errors() -> None:
    items = molecules(edge_attr=False)
    with pytest.raises(ValueError, match=r"data.x must have shape \(N, 5\), got \(8, 3\)"):
        make(in_dim=5)(items[0])
    with pytest.raises(ValueError, match="edge features must be given with edge_dim=2"):
        make(edge_dim=EDGE_DIM)(items[0])
    with pytest.raises(
        ValueError, match=r"position_code must have shape \(N, 5\).*got None; plstm"
    ):
        make(code_dim=5)(items[0])
    with pytest.raises(ValueError, match="AttentiveFP reads out graphs, not nodes"):
        make("AttentiveFP", per_node=True)
    with pytest.raises(ValueError, match="pooling must be one of 'mean', 'sum', 'both', got 'max'"):
        make(pooling="max")
    with pytest.raises(ValueError, match="need depth >= 1"):
        make(depth=0)
    with pytest.raises(ValueError, match="gnn must be one of"):
        make("GINE")
    assert GraphEncoder(3, 8).edges(torch.ones(2, 2)) is None


def test_categories_are_embedded_as_one_hot_features_are() -> None:
    """Offsets make one table of all columns."""
    encoder = GraphEncoder(5, 8, edge_dim=3, node_columns=2, edge_columns=1)
    x, edge_attr = torch.tensor([[0, 3], [2, 4], [1, 3]]), torch.tensor([[0], [2]])
    data = Data(x=x, edge_index=torch.tensor([[0, 1], [1, 0]]))
    hot = nn.functional.one_hot(x, 5).sum(1).float()
    linear = GraphEncoder(5, 8, edge_dim=3)
    with torch.no_grad():
        linear.node.weight.copy_(encoder.node.weight.T)
        linear.edge.weight.copy_(encoder.edge.weight.T)
        linear.node.bias.zero_()
        linear.edge.bias.zero_()
    linear.degree.load_state_dict(encoder.degree.state_dict())
    want = linear(Data(x=hot, edge_index=data.edge_index))
    assert_close("nodes", encoder(data), want, 1e-5)
    edge_hot = nn.functional.one_hot(edge_attr, 3)[:, 0].float()
    assert_close("edges", encoder.edges(edge_attr), linear.edges(edge_hot), 1e-5)
    assert encoder.edges(torch.zeros(0, 1, dtype=torch.int64)).shape == (0, 8)  # one atom
    torch.manual_seed(0)
    big = GraphEncoder(2000, 64, node_columns=9).node.weight.detach()
    assert float(big.std()) == pytest.approx(1 / 3, rel=0.05)  # so that sums of 9 have 1
    for wrong in (x.float(), x[:, :1]):
        with pytest.raises(ValueError, match=r"CategoryEmbedding: x must be integers \(N, 2\)"):
            encoder(Data(x=wrong, edge_index=data.edge_index))
