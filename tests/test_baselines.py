"""ML-GCN, Query2Label and CSRA against plain versions of themselves, and the graphs over the classes against loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cprfl.errors import ShapeError
from cprfl.evaluation.metrics import average_precision
from cprfl.losses import AsymmetricLoss
from cprfl.models.base import Facts, Method, MethodConfig
from cprfl.models.csra import CSRA
from cprfl.models.graph import GraphNetwork, conditional_graph, label_graph
from cprfl.models.ml_gcn import MLGCN
from cprfl.models.query2label import Query2Label, text_queries
from tests.helpers import facts_of

CLASSES, TEXT, DIM, CELLS = 5, 6, 8, 7
Array = np.ndarray


def facts(num_classes: int = CLASSES) -> Facts:
    """Facts whose classes co-occur; no image shows the last of several."""
    targets = np.random.default_rng(0).random((40, num_classes)) < 0.5
    targets[:, 1:][:, -1:] = False
    co_occurrence = torch.from_numpy(targets.T.astype(int) @ targets.astype(int))
    mean, std = torch.arange(DIM) / 10.0, 1 + torch.arange(DIM) / 4.0
    known = facts_of(num_classes, TEXT, DIM)
    return replace(known, co_occurrence_CC=co_occurrence, grid_mean_D=mean, grid_std_D=std)


def grid() -> Tensor:
    return torch.randn(9, CELLS, DIM, generator=torch.Generator().manual_seed(1))


def softmax(values: Array) -> Array:
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def plain_label_graph(text: Array, top_k: int, reweight: float, temperature: float) -> Array:
    num_classes = len(text)
    graph = np.zeros((num_classes, num_classes))
    for i in range(num_classes):
        cosine = [x @ text[i] / math.sqrt((x @ x) * (text[i] @ text[i])) for x in text]
        others = sorted((j for j in range(num_classes) if j != i), key=lambda j: -cosine[j])[: top_k - 1]
        total = sum(max(cosine[j], 0) for j in others)
        related = {j: reweight * max(cosine[j], 0) / total if total > 0 else 0.0 for j in others} | {i: 1 - reweight}
        normaliser = sum(math.exp(value / temperature) for value in related.values())
        for j, value in related.items():
            graph[i, j] = math.exp(value / temperature) / normaliser
    return graph


def plain_conditional_graph(counts: Array, threshold: float, reweight: float) -> Array:
    num_classes = len(counts)
    graph = np.zeros((num_classes, num_classes))
    for i in range(num_classes):
        graph[i, i] = 1 - reweight
        seen = counts[i, i] > 0
        neighbours = [j for j in range(num_classes) if seen and j != i and counts[i, j] / counts[i, i] >= threshold]
        for j in neighbours:
            graph[i, j] = reweight / len(neighbours)
    degree = np.diag(graph.sum(axis=1) ** -0.5)
    return degree @ graph @ degree


def plain_ml_gcn(config: MLGCN.Config, weights: dict[str, Array], cells: Array) -> Array:
    text, counts = facts().text_embeddings_CM.double().numpy(), facts().co_occurrence_CC.numpy()
    graph = plain_conditional_graph(counts, config.threshold, config.reweight)
    if config.graph == "text":
        graph = plain_label_graph(text, config.top_k, config.reweight, config.temperature)
    hidden = graph @ text @ weights["network.weights_IO.0"]
    classifiers = graph @ np.where(hidden > 0, hidden, 0.2 * hidden) @ weights["network.weights_IO.1"]
    return cells.max(axis=1) @ classifiers.T


def plain_attention(weights: dict[str, Array], queries: Array, keys: Array, num_heads: int) -> Array:
    """Multi-head attention of one image's queries [C, D] to its keys [N, D]."""
    parts = zip(np.split(weights["in_proj_weight"], 3), np.split(weights["in_proj_bias"], 3), strict=True)
    query, key, value = (x @ w.T + b for (w, b), x in zip(parts, (queries, keys, keys), strict=True))
    heads = []
    for columns in np.split(np.arange(queries.shape[1]), num_heads):
        scores = query[:, columns] @ key[:, columns].T / math.sqrt(len(columns))
        heads.append(softmax(scores) @ value[:, columns])
    return np.concatenate(heads, axis=1) @ weights["out_proj.weight"].T + weights["out_proj.bias"]


def plain_query2label(config: Query2Label.Config, weights: dict[str, Array], cells: Array) -> Array:
    def below(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}

    def norm(layer: dict[str, Array], number: int, values: Array) -> Array:
        centred = values - values.mean(axis=1, keepdims=True)
        deviation = np.sqrt(values.var(axis=1, keepdims=True) + 1e-5)
        return centred / deviation * layer[f"norm{number}.weight"] + layer[f"norm{number}.bias"]

    logits = []
    for image in cells @ weights["project.weight"].T + weights["project.bias"]:
        queries = weights["queries_CD"]
        for depth in range(config.depth):
            layer = below(f"layers.{depth}.")
            own, cross = below(f"layers.{depth}.self_attn."), below(f"layers.{depth}.multihead_attn.")
            queries = norm(layer, 1, queries + plain_attention(own, queries, queries, config.num_heads))
            queries = norm(layer, 2, queries + plain_attention(cross, queries, image, config.num_heads))
            hidden = np.maximum(queries @ layer["linear1.weight"].T + layer["linear1.bias"], 0)
            queries = norm(layer, 3, queries + hidden @ layer["linear2.weight"].T + layer["linear2.bias"])
        logits.append((weights["weight_CD"] * queries).sum(axis=1) + weights["bias_C"])
    return np.stack(logits)


def plain_csra(config: CSRA.Config, weights: dict[str, Array], cells: Array) -> Array:
    heads = {1: "1", 2: "1 max", 4: "1 2 4 max", 6: "1 2 3 4 5 max", 8: "1 2 3 4 5 6 7 max"}[config.num_heads].split()
    logits = np.tile(weights["bias_C"], (len(cells), 1))
    for image in range(len(cells)):
        for temperature, classifiers in zip(heads, weights["weight_HCD"], strict=True):
            for label, classifier in enumerate(classifiers):
                scores = cells[image] @ classifier / math.sqrt(classifier @ classifier)
                attended = scores.max() if temperature == "max" else softmax(float(temperature) * scores) @ scores
                logits[image, label] += scores.mean() + config.lam * attended
    return logits


def q2l(**more: object) -> Query2Label.Config:
    return Query2Label.Config.model_validate({"dim": 12, "num_heads": 3, "mlp_dim": 10, "dropout": 0.0, **more})


def csra(**more: object) -> CSRA.Config:
    return CSRA.Config.model_validate({"lam": 0.3, **more})


PLAIN: dict[str, Any] = {"ml_gcn": plain_ml_gcn, "query2label": plain_query2label, "csra": plain_csra}
CONFIGS: dict[str, MethodConfig] = {
    "ml_gcn": MLGCN.Config(hidden_dim=10),
    "ml_gcn, text": MLGCN.Config(graph="text", hidden_dim=10, top_k=3),
    "query2label": q2l(),
    "query2label, learned": q2l(queries="learned", depth=1, standardize=False),
    **{f"csra, {num_heads} heads": csra(num_heads=num_heads) for num_heads in (1, 2, 4, 6, 8)},
    "csra, as it comes": csra(standardize=False),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> MethodConfig:
    return CONFIGS[request.param]


def build(config: MethodConfig, known: Facts | None = None) -> Method:
    torch.manual_seed(0)
    return config.build(known or facts())


def test_logits_are_those_of_a_plain_version(config: MethodConfig) -> None:
    method = build(config).double()
    with torch.no_grad():
        for value in method.parameters():
            value.add_(0.1 * torch.randn_like(value))  # or biases that start at zero would not be seen
        logits = method(grid().double(), None)
    cells = grid().double().numpy()
    if config.needs_statistics:
        cells = (cells - facts().grid_mean_D.numpy()) / facts().grid_std_D.numpy()
    weights = {name: value.detach().numpy() for name, value in method.state_dict().items()}
    assert np.allclose(logits.numpy(), PLAIN[config.name](config, weights, cells), atol=1e-6)


def test_every_parameter_gets_a_gradient_in_every_step(config: MethodConfig) -> None:
    method = build(config)
    targets = (torch.rand(9, CLASSES) < 0.4).float()
    parts = method.losses(AsymmetricLoss(), targets, grid(), torch.zeros(9, 0))
    for gradient in torch.autograd.grad(parts["criterion"], list(method.parameters())):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


def test_scores_do_not_depend_on_the_batch(config: MethodConfig) -> None:
    method = build(config).eval()
    with torch.inference_mode():
        assert torch.allclose(method(grid()[2:4], None), method(grid(), None)[2:4], atol=1e-5)


def test_state_reloads_to_identical_scores(config: MethodConfig) -> None:
    method = build(config).eval()
    torch.manual_seed(99)
    again = config.build(facts()).eval()
    with torch.inference_mode():
        assert not torch.equal(again(grid(), None), method(grid(), None))
        again.load_state_dict(method.state_dict())
        assert torch.equal(again(grid(), None), method(grid(), None))


def test_one_class_and_one_cell_are_enough(config: MethodConfig) -> None:
    method = build(config, facts(1))
    logits = method(grid()[:, :1], None)
    assert logits.shape == (9, 1)
    assert torch.isfinite(logits).all()
    assert len(logits.unique()) == 9


def test_cells_of_another_encoder_are_refused(config: MethodConfig) -> None:
    with pytest.raises(ShapeError, match=r"the model takes \[images, cells, 8\]"):
        build(config)(torch.zeros(2, CELLS, DIM + 1), None)


@pytest.mark.parametrize("name", ["ml_gcn", "query2label", "csra, 4 heads"])
def test_what_one_cell_shows_is_learned(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    cells = 0.3 * torch.randn(160, CELLS, DIM, generator=generator)
    targets = (torch.rand(160, CLASSES, generator=generator) < 0.3).float()
    for label in range(CLASSES):  # at a cell of its own choice, the class's channel lights up
        cells[torch.arange(160), torch.randint(CELLS, (160,), generator=generator), label] += 3 * targets[:, label]
    method = build(CONFIGS[name])
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.02)
    for _ in range(60):
        parts = method.losses(torch.nn.BCEWithLogitsLoss(), targets[:80], cells[:80], torch.zeros(80, 0))
        optimizer.zero_grad()
        parts["criterion"].backward()
        optimizer.step()
    with torch.inference_mode():
        scores = method.eval()(cells[80:], None)
    assert np.mean(average_precision(scores.numpy(), targets[80:].numpy() > 0)) > 0.9


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_heads 5 does not divide dim 12"):
        q2l(num_heads=5)
    with pytest.raises(ValidationError, match="threshold"):
        MLGCN.Config(threshold=0)
    with pytest.raises(ValidationError, match="num_heads"):
        csra(num_heads=3)
    with pytest.raises(ValueError, match="make no layer"):
        GraphNetwork([8])


def test_queries_from_text_differ_though_the_texts_are_nearly_one() -> None:
    torch.manual_seed(0)
    queries = text_queries(10 + torch.randn(CLASSES, TEXT), 64)
    assert torch.allclose(queries.std(correction=0), torch.tensor(1.0))
    assert torch.cosine_similarity(queries[:1], queries[1:]).abs().max() < 0.95


def test_a_graph_network_has_layers_without_bias_that_start_by_their_width() -> None:
    network = GraphNetwork([4, 400, 9])
    assert [tuple(weight.shape) for weight in network.weights_IO] == [(4, 400), (400, 9)]
    for weight in network.weights_IO:
        assert 0.9 / math.sqrt(weight.shape[1]) < weight.abs().max() <= 1 / math.sqrt(weight.shape[1])


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 50])
@pytest.mark.parametrize("offset", [0.0, 3.0])  # 0: cosines of both signs
def test_the_label_graph_is_that_of_a_loop(top_k: int, offset: float) -> None:
    text = offset + torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    graph = label_graph(text, top_k, 0.2, 0.3)
    assert np.allclose(graph.numpy(), plain_label_graph(text.numpy(), top_k, 0.2, 0.3), atol=1e-12)
    assert torch.allclose(graph.sum(dim=1), torch.ones(6).double())
    assert ((graph > 0).sum(dim=1) == min(top_k, 6)).all()


@pytest.mark.parametrize(("num_classes", "top_k", "own"), [(80, 60, 0.19), (20, 20, 0.42)])
def test_the_label_graph_weighs_the_class_itself_as_on_coco_and_voc(num_classes: int, top_k: int, own: float) -> None:
    text = 4 + torch.randn(num_classes, 512, generator=torch.Generator().manual_seed(4))
    assert label_graph(text, top_k, 0.2, 0.3).diagonal().numpy() == pytest.approx(own, abs=0.005)


def test_the_label_graph_of_odd_texts_is_finite() -> None:
    opposed = label_graph(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 2, 0.2, 0.3)
    own = math.exp(0.8 / 0.3) / (math.exp(0.8 / 0.3) + 1)
    assert torch.allclose(opposed, torch.tensor([[own, 1 - own], [1 - own, own]]))
    assert torch.equal(label_graph(torch.zeros(3, 4), 1, 0.2, 0.3), torch.eye(3))
    assert torch.equal(label_graph(torch.ones(3, 4), 1, 0.2, 0.3), torch.eye(3))  # itself, not another of its text
    assert torch.equal(label_graph(torch.ones(1, 4), 20, 0.2, 0.3), torch.ones(1, 1))
    assert torch.isfinite(label_graph(torch.randn(5, 4), 3, 0.2, 1e-4)).all()


@pytest.mark.parametrize("threshold", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("reweight", [0.0, 0.2, 0.9])
def test_the_conditional_graph_is_that_of_a_loop(threshold: float, reweight: float) -> None:
    counts = facts(7).co_occurrence_CC
    counts[2, 3] = counts[3, 2] = counts[2, 2]  # wherever class 2 is, class 3 is
    graph = conditional_graph(counts, threshold, reweight)
    assert np.allclose(graph.numpy(), plain_conditional_graph(counts.numpy(), threshold, reweight), atol=1e-6)


def test_neighbours_are_those_at_the_threshold_and_one_way() -> None:
    graph = conditional_graph(torch.tensor([[5, 2, 0], [2, 100, 0], [0, 0, 0]]), 0.4, 0.2)
    # Class 0 hears from class 1, which keeps to itself: rows sum to 1 and .8. No image shows class 2.
    assert torch.allclose(graph, torch.tensor([[0.8, 0.2 / math.sqrt(0.8), 0], [0, 1, 0], [0, 0, 1]]))
    assert torch.allclose(conditional_graph(torch.tensor([[7]]), 0.4, 0.2), torch.ones(1, 1))
    assert torch.allclose(conditional_graph(torch.zeros(3, 3).long(), 0.4, 0.2), torch.eye(3))


def test_graphs_and_texts_are_facts_and_in_no_checkpoint() -> None:
    assert list(build(MLGCN.Config()).state_dict()) == ["network.weights_IO.0", "network.weights_IO.1"]
