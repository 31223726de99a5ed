"""Settings of a training run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cprfl.config import Config
from cprfl.encoders.adapters import Backbone
from cprfl.training.augmentation import AugmentationConfig
from cprfl.training.sampling import Sampler


class FinetuneConfig(Config):
    """How to train the image encoder, as a whole or by adapters.

    Attributes:
        lr_factor: its learning rate is ``train.lr`` times this.
        weight_decay: of its matrices; ``train.weight_decay`` unless given.
        adapter_width: of the adapters' bottleneck.
        batch_norm: update the running statistics (``train``) or keep them (``frozen``, and always beside adapters).
        gradient_checkpointing: recompute activations in the backward pass, for less memory.
        augmentation: of the decoded images.
        num_processes: that decode images, per worker.
    """

    lr_factor: PositiveFloat = 1.0
    weight_decay: NonNegativeFloat | None = None
    adapter_width: PositiveInt = 32
    batch_norm: Literal["train", "frozen"] = "train"
    gradient_checkpointing: bool = False
    augmentation: AugmentationConfig = AugmentationConfig()
    num_processes: int = Field(default=2, ge=0)


class TrainConfig(Config):
    """How to train.

    Attributes:
        epochs: passes over the training images.
        schedule_epochs: length of the one-cycle schedule where the training stops before its end (the released code
            plans 80 epochs).
        batch_size: images a step, over all workers.
        sampler: what an epoch is made of: every training image once (``uniform``), or as many draws, each of the next
            class in turn and of one of its images (``class_aware``; Shen et al., ECCV 2016). The latter never draws an
            image without a class, and holds for the epoch: cached features are shuffled among the shards in memory, so
            a batch need not show every class.
        lr: peak learning rate; one that suits the method unless given (`Method.lr`).
        weight_decay: AdamW's; biases and norms are spared.
        warmup: share of the steps in which the rate rises.
        ema_decay: 0 switches the average off.
        clip_norm: gradients of a larger norm are scaled down to it; null switches that off.
        validation: share of the training images that is held out by iterative stratification; 0 trains on all.
        select: which weights are kept: the ``last``; the ``best`` by mAP on the validation split; or, trained on all
            images, those after as many epochs as were best on ``folds`` of them. Unless given it is ``folds`` for a
            method that is scored on folds anyway, ``last`` for others.
        precision: ``auto`` is bf16 autocast on a GPU, float32 on a CPU.
        features_in_memory_mb: cached features stay in memory if those of a split fit into this; the batches
            are the same.
        compile: ``torch.compile`` the network: ``never``, ``auto`` (on a GPU) or ``always`` (needs a C++ compiler).
        backbone: ``frozen`` trains on cached features; ``adapter`` and ``finetune`` on images, with small adapters
            beside the encoder's blocks or with all of its weights.
        finetune: settings of the latter two.
        distill: weight of the L1 distance between the moving encoder's summary of an image and that of a copy that
            stayed as it was (HP-DVAL, equation 2); 0 for none.
        correlation: weight of the correlation-regularised calibration penalty (CCR, CVPR 2026): scores of two classes
            shall be as correlated as their names are similar; 0 for none.
    """

    epochs: PositiveInt = 30
    schedule_epochs: PositiveInt | None = None
    batch_size: PositiveInt = 32
    sampler: Sampler = "uniform"
    lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat = 0.05
    warmup: float = Field(default=0.1, gt=0, lt=1)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    clip_norm: PositiveFloat | None = 1.0
    validation: float = Field(default=0.0, ge=0, lt=1)
    select: Literal["last", "best", "folds"] | None = None
    precision: Literal["auto", "float32", "bf16"] = "auto"
    features_in_memory_mb: int = Field(default=512, ge=0)
    compile: Literal["never", "auto", "always"] = "never"
    backbone: Backbone = "frozen"
    finetune: FinetuneConfig = FinetuneConfig()
    distill: NonNegativeFloat = 0.0
    correlation: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs {self.schedule_epochs} ends before epochs {self.epochs}")
        if self.select == "folds" and self.backbone != "frozen":
            raise ValueError("select: folds scores cached features; take best or last for an encoder that moves")
        if self.distill > 0 and self.backbone == "frozen":
            raise ValueError("distill needs an encoder that moves; set train.backbone to adapter or finetune")
        return self

    @property
    def moves_tower(self) -> bool:
        """Whether the image encoder is trained too."""
        return self.backbone != "frozen"
