"""What every method answers, and what each one is (`tests.every_method.METHODS`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression

from cprfl.encoders.base import Encoded
from cprfl.errors import ShapeError, WeightsError
from cprfl.evaluation.metrics import average_precision
from cprfl.inference.predictor import load_method
from cprfl.losses import AsymmetricLoss, DistributionBalancedLoss, WeightedFocalLoss
from cprfl.models import (
    CoOp,
    Ensemble,
    LinearProbe,
    LogisticRegression,
    MethodConfig,
    ZeroShot,
)
from cprfl.models.ensemble import fit_weights
from cprfl.models.logistic_regression import solve
from cprfl.models.pooled import pooled
from cprfl.training.checkpoint import CheckpointInfo, save_checkpoint
from cprfl.training.config import TrainConfig
from cprfl.training.objective import Objective
from tests.every_method import CLASSES, DIM, METHODS, REGRESSION, SMALL, SUMMARY, Images, facts, text_tower
from tests.helpers import facts_of


@pytest.fixture(params=METHODS)
def config(request: pytest.FixtureRequest) -> MethodConfig:
    return METHODS[request.param]


def fitted(config: MethodConfig, images: Images) -> Objective:
    torch.manual_seed(0)
    tower = text_tower() if config.needs_text_tower else None
    objective = Objective(config.build(facts(), tower), AsymmetricLoss(), TrainConfig())
    if config.folds:
        with torch.no_grad():
            logits = objective.method.eval().member_logits(images.grid.float(), images.summary.float())
        objective.method.weigh_members(torch.randn_like(logits) + images.targets, images.targets)
    objective.method.fit(images)
    return objective


def test_scores_are_logits_of_all_classes_and_do_not_depend_on_the_batch(config: MethodConfig) -> None:
    images = Images()
    method = fitted(config, images).method.eval()
    scores = images.scores_of(method)
    assert scores.shape == (60, CLASSES)
    assert torch.isfinite(scores).all()
    with torch.inference_mode():
        assert torch.allclose(method(images.grid[:7].float(), images.summary[:7].float()), scores[:7], atol=1e-5)


def test_gradients_reach_what_they_train_and_nothing_else_is_a_parameter(config: MethodConfig) -> None:
    images = Images()
    objective = fitted(config, images)
    parameters = list(objective.trained_parameters().values())
    assert bool(parameters) is config.by_gradients
    if not parameters:
        return
    parts = objective.train()(Encoded(images.grid, images.summary), images.targets)
    for gradient in torch.autograd.grad(sum(parts.values()), parameters):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in text_tower().parameters())


def test_a_checkpoint_rebuilds_it_to_identical_scores(config: MethodConfig, tmp_path: Path) -> None:
    images = Images()
    objective = fitted(config, images)
    experiment = {
        "name": "x", "dataset": {"name": "synthetic"},
        "encoder": {"name": "open_clip", "model": "cprfl-embedded", "project": True},
        "text_encoder": {"name": "open_clip", "model": "cprfl-embedded"}, "model": config.model_dump(mode="json"),
        "train": {"backbone": "finetune" if config.needs_moving_tower else "frozen"},
    }  # fmt: skip
    info = CheckpointInfo(experiment, "key", list(facts().class_names), "", "", 0, {}, holds_tower=False)
    save_checkpoint(tmp_path, objective.prediction_state(objective.kept_state()), facts(), info, None)
    torch.manual_seed(99)
    method, _ = load_method(tmp_path)
    assert torch.equal(images.scores_of(method), images.scores_of(objective.method))


def test_logistic_regression_is_scikit_learns_on_mean_and_maximum() -> None:
    images = Images()
    scores = images.scores_of(fitted(REGRESSION, images).method)
    features = pooled(images.grid.float()).double().numpy()
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    for label in range(CLASSES):
        reference = ScikitLogisticRegression(C=0.1, max_iter=10_000, tol=1e-8)
        reference.fit(features, images.targets[:, label].numpy())
        assert np.allclose(scores[:, label], reference.decision_function(features), atol=5e-3)


def test_the_strength_is_chosen_on_folds() -> None:
    images = Images()
    config = LogisticRegression.Config(strengths=[1e-6, 1.0], num_folds=3)
    chosen = images.scores_of(fitted(config, images).method)
    strong = images.scores_of(fitted(REGRESSION.model_copy(update={"strengths": [1.0]}), images).method)
    assert torch.equal(chosen, strong)  # at 1e-6 nothing is learned


def test_a_class_that_no_or_every_image_shows_gets_a_constant() -> None:
    targets = np.zeros((10, 3), dtype=bool)
    targets[:, 1] = True
    targets[:4, 2] = True
    weight, bias = solve(np.random.default_rng(0).normal(size=(10, 4)), targets, 1.0)
    assert (weight[:2] == 0).all()
    assert (weight[2] != 0).any()
    assert bias[0] == pytest.approx(np.log(0.5 / 10.5)) == -bias[1]


def test_zero_shot_is_the_cosine_and_its_softmax_ranks_otherwise() -> None:
    images = Images()
    cosine = images.scores_of(fitted(METHODS["zero shot"], images).method)
    expected = F.normalize(images.summary.float(), dim=1) @ F.normalize(facts().text_embeddings_CM, dim=1).T
    assert torch.allclose(cosine, expected, atol=1e-6)
    softmax = images.scores_of(fitted(METHODS["zero shot by softmax"], images).method)
    probability = (100 * cosine).softmax(dim=1)
    clear = (probability > 1e-4) & (probability < 1 - 1e-4)
    assert torch.allclose(softmax.sigmoid()[clear], probability[clear], rtol=1e-3)
    assert torch.equal(softmax.argmax(dim=1), cosine.argmax(dim=1))
    assert not torch.equal(softmax[:, 0].argsort(), cosine[:, 0].argsort())
    with pytest.raises(ShapeError, match="give encoder and text_encoder the same open_clip model"):
        ZeroShot.Config().build(facts_of(CLASSES, 4, DIM))


def test_prompts_are_encoded_by_the_tower_as_its_own_words_would_be() -> None:
    method = fitted(CoOp.Config(num_context=3), Images()).method
    assert isinstance(method, CoOp)
    texts = [f"a photo of {name}." for name in facts().class_names]
    tower = text_tower()
    tokens = tower.tokens(texts)
    with torch.no_grad():
        prompts = method.prompts
        prompts.context_CMD.copy_(tower.embed(tokens)[:1, 1:4])
        expected = F.normalize(tower.encode(tokens), dim=1)
        assert torch.allclose(prompts.train()(), expected, atol=1e-6)
        assert not torch.allclose(prompts.text_CE, expected, atol=1e-3)
        method.bake()
        assert torch.allclose(prompts.eval()(), expected, atol=1e-6)
    assert not [name for name in method.state_dict() if "tower" in name]


def test_a_name_that_does_not_fit_and_another_space_are_named() -> None:
    with pytest.raises(WeightsError, match=r"class 'class 0' with 20 tokens of context is longer than .* 16"):
        CoOp.Config(num_context=20).build(facts(), text_tower())
    with pytest.raises(ShapeError, match="give encoder and text_encoder the same open_clip model"):
        CoOp.Config().build(replace(facts(), global_dim=SUMMARY + 1), text_tower())


def test_members_have_a_loss_each_and_their_logits_are_averaged() -> None:
    torch.manual_seed(0)
    config = Ensemble.Config(members=[SMALL, SMALL, LinearProbe.Config(gain=4)])
    method, images = config.build(facts()), Images(3)
    grid, summary = images.grid.float(), images.summary.float()
    members = [member(grid, summary) for member in method.members]
    assert torch.allclose(method(grid, summary), sum(members) / 3, atol=1e-6)
    assert not torch.equal(members[0], members[1])  # they start from different weights
    for loss in (
        AsymmetricLoss(),
        DistributionBalancedLoss(torch.tensor([2, 3, 1, 4, 2]), 9),
        WeightedFocalLoss(2.0, 2.0, torch.rand(5), True),
    ):
        parts = method.losses(loss, images.targets, grid, summary)
        assert torch.allclose(parts["criterion"], sum(loss(logits, images.targets) for logits in members) / 3)


def test_fitted_weights_are_never_worse_than_the_best_member_and_keep_logits_logits() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((400, 6)) < 0.2
    truth = 4.0 * targets - 3
    good, other, noise = (truth + scale * rng.normal(size=targets.shape) for scale in (2.0, 2.5, 0.0))
    members = np.stack([good, 10 * other, rng.normal(size=targets.shape)])
    weights, offset = fit_weights(members, targets)
    assert (weights >= 0).all()
    mixed = np.tensordot(weights, members, 1) + offset
    best = max(np.mean(average_precision(member, targets)) for member in members)
    assert np.mean(average_precision(mixed, targets)) > best + 0.01  # two that err differently
    share = weights * members.std(axis=(1, 2))
    assert share[2] < 0.2 * share.sum()
    probability = 1 / (1 + np.exp(-mixed))
    assert probability.mean() == pytest.approx(targets.mean(), abs=0.01)
    alone, _ = fit_weights(np.stack([noise, rng.normal(size=targets.shape)]), targets)
    assert alone[1] == 0  # a perfect member needs no other
    only, _ = fit_weights(good[None], targets)
    assert only.shape == (1,)
    assert only[0] > 0
