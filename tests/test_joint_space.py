"""Methods in CLIP's joint space, and Gaussian discriminants, against independent versions in NumPy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cprfl.encoders.base import Encoded
from cprfl.encoders.clip import create_clip
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import ConfigError, ShapeError
from cprfl.evaluation.metrics import average_precision
from cprfl.losses import AsymmetricLoss
from cprfl.models import CAPNET, CPRFL, HPDVAL, LMPT, AutoConfig, Facts, GaussianDiscriminant, LabelFree
from cprfl.models.cprfl import width
from cprfl.models.gaussian_discriminant import discriminants
from cprfl.models.hp_dval import dual_view_scores, released_scores
from cprfl.models.label_free import gaussian_discriminant
from cprfl.models.pooled import fold_of_each, standardized
from cprfl.models.prompts import PHRASE
from tests.helpers import facts_of

B, V, E, C = 6, 7, 64, 5


@functools.cache
def text_tower() -> TextTower:
    return TextTower(create_clip("cprfl-embedded", "random", None, Path()), "cprfl-embedded")


def facts() -> Facts:
    return replace(facts_of(C, E, E), global_dim=E, class_counts_C=torch.tensor([40, 3, 9, 20, 0]), num_images=60)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(values: np.ndarray) -> np.ndarray:
    norm: np.ndarray = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / norm


@pytest.mark.parametrize(("top_k", "alpha"), [(1, 0.4), (3, 0.0), (7, 1.0), (100, 0.7)])
def test_dual_view_scores_weigh_the_summary_and_the_closest_cells(top_k: int, alpha: float) -> None:
    summary, cells, text_global, text_local = (
        drawn(B, E),
        drawn(B, V, E, seed=1),
        drawn(C, E, seed=2),
        drawn(C, E, seed=3),
    )
    found = dual_view_scores(summary, cells, text_global, text_local, top_k, alpha).numpy()
    for image in range(B):
        for label in range(C):
            view = unit(summary[image].numpy()) @ unit(text_global[label].numpy())
            closest = np.sort(unit(cells[image].numpy()) @ unit(text_local[label].numpy()))[-top_k:]
            assert found[image, label] == pytest.approx(alpha * view + (1 - alpha) * closest.mean(), abs=1e-5)


def test_the_released_scores_are_normalised_over_the_classes_and_alpha_weighs_the_cells() -> None:
    summary, cells, text = drawn(B, E).numpy(), drawn(B, V, E, seed=1).numpy(), drawn(C, E, seed=2).numpy()
    local = np.sort(cells @ text.T, axis=1)[:, -3:].mean(axis=1)
    expected = 0.3 * unit(local) + 0.7 * unit(summary @ text.T)
    words = torch.from_numpy(text)
    found = released_scores(torch.from_numpy(summary), torch.from_numpy(cells), words, words, 3, 0.3)
    assert np.allclose(found, expected, atol=1e-5)


def test_alignment_scores_with_the_templates_and_prompts_begin_there_where_they_begin_as_the_phrase() -> None:
    words = text_tower().tokens([f"{PHRASE} {name}." for name in facts().class_names])
    with torch.no_grad():
        templates = F.normalize(text_tower().encode(words), dim=1)
    known = replace(facts(), text_embeddings_CM=templates)
    summary, cells = drawn(B, E), drawn(B, V, E, seed=1)
    aligned = HPDVAL.Config(stage="alignment", variant="released").build(known).eval()(cells, summary)
    prompted = HPDVAL.Config(variant="released").build(known, text_tower())
    assert torch.allclose(prompted.eval()(cells, summary), aligned, atol=1e-4)
    penalty = prompted.train().losses(AsymmetricLoss(), torch.ones(B, C), cells, summary)["semantic_consistency"]
    assert penalty.item() == pytest.approx(0, abs=1e-6)


def test_semantic_consistency_is_of_the_global_prompt_or_as_released_of_the_local_one() -> None:
    for variant, consistent in (("paper", "global_prompts"), ("released", "local_prompts")):
        torch.manual_seed(0)
        method = HPDVAL.Config(variant=variant, consistency=2.0).build(facts(), text_tower()).train()
        parts = method.losses(AsymmetricLoss(), torch.ones(B, C), drawn(B, V, E), drawn(B, E))
        learned = getattr(method, consistent).encoded().detach().numpy()
        template = unit(facts().text_embeddings_CM.numpy())
        assert parts["semantic_consistency"].item() == pytest.approx(2 * np.abs(learned - template).mean(), rel=1e-4)


def test_capnet_adds_what_the_graph_says_to_the_prompts() -> None:
    method = CAPNET.Config(hidden=8, top_k=3).build(facts(), text_tower()).eval()
    assert method.network is not None
    weights = [parameter.detach().numpy() for parameter in method.network.parameters()]
    adjacency, hidden = method.adjacency_CC.numpy(), method.prompts.text_CE.numpy()
    for number, weight in enumerate(weights):
        hidden = adjacency @ (hidden @ weight)
        hidden = np.where(hidden > 0, hidden, 0.2 * hidden) if number < 2 else hidden
    expected = unit(method.prompts.text_CE.numpy() + hidden)
    assert np.allclose(method.classifiers().detach(), expected, atol=1e-5)
    assert method.scale(torch.ones(())).item() == pytest.approx(100, rel=1e-5)
    alone = CAPNET.Config(graph=False).build(facts(), text_tower()).eval()
    assert torch.equal(alone.classifiers(), alone.prompts.text_CE)


def test_a_phrase_of_another_length_than_the_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.num_context: 'a photo of a' has 4 tokens"):
        CAPNET.Config(num_context=3).build(facts(), text_tower())


@pytest.mark.parametrize("unknown", [False, True])
def test_lmpts_embedding_loss_draws_prompts_to_the_captions_of_their_images(unknown: bool) -> None:
    torch.manual_seed(0)
    method = LMPT.Config(num_context=4, criterion_share=0.25, margin=0.5).build(facts(), text_tower()).train()
    targets = (drawn(B, C, seed=4) > 0).float()
    if unknown:
        targets[:3, 1], targets[2:4, 4], targets[5] = torch.nan, torch.nan, torch.nan
    parts = method.losses(AsymmetricLoss(), targets, drawn(B, V, E), drawn(B, E))
    counts = np.array([40, 3, 9, 20, 1.0])
    weight, margin = counts**-2 / (counts**-2).sum(), 0.5 * counts**-0.25
    prompts = unit(method.prompts.embedded().detach().numpy()[:, 2:])
    total = 0.0
    for row in targets.numpy():
        names = [name for name, shown in zip(facts().class_names, row, strict=True) if shown == 1]
        caption = text_tower().embed(text_tower().tokens([f"a photo of a {', '.join(names)}."]))[0, :-2]
        cosine = (unit(caption.numpy())[None] * prompts).sum(axis=2).mean(axis=1)
        costs = weight * np.maximum(margin - np.where(row > 0, 1, -1) * cosine, 0)
        total += costs[~np.isnan(row)].sum()
    images = B - 1 if unknown else B  # of one nothing is known
    assert parts["class_embedding"].item() == pytest.approx(0.75 * total / images, rel=1e-4)


def test_the_discriminant_of_cells_is_one_of_gaussians_with_a_shared_covariance() -> None:
    cells, p = drawn(40, 6).double(), drawn(40, C, seed=1).double().softmax(dim=1)
    p[:, 4] = 0  # a class without cells
    fallback = drawn(C, 6, seed=2).double()
    weight, bias = gaussian_discriminant(cells, p, fallback)
    x, q = cells.numpy(), p.numpy()
    label = q.argmax(axis=1)
    means = np.stack([
        np.average(x[label == c], axis=0, weights=q[label == c, c]) if (label == c).any() else fallback[c].numpy()
        for c in range(C)
    ])  # fmt: skip
    inverse = 6 * np.linalg.pinv(39 * np.cov((x - means[label]).T) + np.trace(np.cov((x - means[label]).T)) * np.eye(6))
    assert weight.shape == (6, C)
    assert np.allclose(weight, inverse @ means.T, atol=1e-8)
    assert np.allclose(bias, [-m @ inverse @ m / 2 + np.log(1 / C) for m in means], atol=1e-8)
    assert torch.isfinite(gaussian_discriminant(cells, p)[0]).all()
    assert torch.isfinite(gaussian_discriminant(cells[:1], p[:1])[0]).all()


class Scenes:
    """Cells of which some look like the texts of their image's classes."""

    def __init__(self, targets_NC: Tensor, noise: float = 0.05) -> None:
        self.targets = targets_NC
        text = F.normalize(facts().text_embeddings_CM, dim=1)
        self.cells = noise * drawn(len(targets_NC), V, E, seed=5)
        for image, row in enumerate(targets_NC):
            for place, label in enumerate(row.nonzero().flatten().tolist()):
                self.cells[image, place] += text[label]
        self.summary = self.cells.mean(dim=1)

    def __call__(self) -> Iterator[tuple[Encoded, Tensor]]:
        for rows in torch.arange(len(self.cells)).split(8):
            yield Encoded(self.cells[rows].half(), self.summary[rows].half()), self.targets[rows]


def test_label_free_does_not_look_at_labels_and_finds_what_cells_show() -> None:
    shown = torch.zeros(30, C)
    for image in range(30):
        shown[image, [image % C, (image + 1 + image // C % 4) % C]] = 1
    scenes, methods = Scenes(shown), [LabelFree.Config().build(facts()) for _ in range(2)]
    methods[0].fit(scenes)
    scenes.targets = 1 - scenes.targets
    methods[1].fit(scenes)
    scores, others = (method.eval()(scenes.cells, scenes.summary) for method in methods)
    assert torch.equal(scores, others)
    assert not list(methods[0].parameters())
    top_two = scores.topk(2, dim=1).indices.sort(dim=1).values
    assert (top_two == torch.stack([row.nonzero().flatten() for row in shown])).float().mean() > 0.95
    with pytest.raises(ShapeError, match=r"their cells 8; .* encoder.project: true"):
        LabelFree.Config().build(replace(facts(), grid_dim=8))


def test_discriminants_with_labels_are_two_gaussians_per_class() -> None:
    values, targets = drawn(30, 4).double().numpy(), drawn(30, 3, seed=1).numpy() > 0.5
    targets[:, 2] = False
    weight, bias = discriminants(values, targets, [0.3])
    centred = values - values.mean(axis=0)
    covariance = centred.T @ centred / 30
    shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / 4 * np.eye(4)
    for label in range(2):
        own, rest = values[targets[:, label]], values[~targets[:, label]]
        expected = np.linalg.solve(shrunk, own.mean(axis=0) - rest.mean(axis=0))
        assert np.allclose(weight[0, label], expected)
        middle = (own.mean(axis=0) + rest.mean(axis=0)) / 2
        assert bias[0, label] == pytest.approx(np.log((len(own) + 0.5) / (len(rest) + 0.5)) - expected @ middle)
    assert (weight[0, 2] == 0).all()


def test_the_shrinkage_is_chosen_on_folds() -> None:
    shown = (drawn(60, C, seed=7) > 0.8).float()
    scenes, chosen = Scenes(shown, 0.5), GaussianDiscriminant.Config(shrinkages=[0.0, 0.5], num_folds=3).build(facts())
    chosen.fit(scenes)
    values, targets, *_ = standardized(scenes)
    fold, found = fold_of_each(targets, 3), []
    for share in (0.0, 0.5):
        scores = np.zeros(targets.shape)
        for held_out in (fold == number for number in range(3)):
            scores[held_out] = values[held_out] @ discriminants(values[~held_out], targets[~held_out], [share])[0][0].T
        found.append(np.nanmean(average_precision(scores, targets)))
    only = GaussianDiscriminant.Config(shrinkages=[(0.0, 0.5)[int(np.argmax(found))]]).build(facts())
    only.fit(scenes)
    assert found[0] != found[1]
    assert torch.equal(chosen.weight_CF, only.weight_CF)


def test_auto_has_zero_shot_where_there_is_a_joint_space_and_a_width_that_fits() -> None:
    names = [member.name for member in AutoConfig().members(facts())]
    assert names == ["cprfl", "cprfl", "logistic_regression", "gaussian_discriminant"]
    joint = AutoConfig(num_cprfl=1).members(replace(facts(), joint_space=True))
    assert [member.name for member in joint] == ["cprfl", "logistic_regression", "gaussian_discriminant", "zero_shot"]
    assert [width(n, 20) for n in (50, 300, 600, 2000, 10_000, 82_000)] == [256, 256, 256, 256, 1024, 2048]
    assert width(300, 400) == 1024
    model = CPRFL.Config().build(replace(facts(), num_images=600))
    assert model.visual.out_features == 256
    assert model.lr == pytest.approx(1e-3)
    reproducing = CPRFL.Config(dim=64, num_heads=8, head_dim=16, mlp_dim=32).build(facts())
    assert reproducing.interaction.blocks[0].num_heads == 8
