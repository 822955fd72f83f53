"""Fine-tuning from given weights with ST, as the papers' R50-ST*: subnets learn from the ground truth.

What is theirs: ST goes on during fine-tuning, and the ground truth teaches the subnets. Their settings were
not at hand: every number here is this project's choice. For detection and segmentation:
`fasttrain.stimulate`.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, Method, Optim, Run
from .imagenet import rn50_ct_200


def rn50_st_finetune() -> Config:
    """ResNet-50, fine-tuning of `--model.weights FILE` by ST, subnets trained on the ground truth."""
    base = rn50_ct_200()
    return replace(
        base,
        recipe="rn50-st-finetune",
        data=replace(base.data, min_area=0.25, jitter=0.0, lighting=0.0),  # our choice
        model=replace(base.model, new_head=True),
        method=Method(
            name="stimulative",
            subnets=1,  # ST
            supervision="ce_target",  # R50-ST*: ground truth instead of the main network's output
            normalize="none",  # ST
        ),
        # our choice: a tenth of the rate per image of training from scratch (0.2 at batch 512)
        optim=Optim(lr=0.005, weight_decay=1e-4, warmup_epochs=1),
        run=Run(epochs=30, batch=128),  # our choice
    )


RECIPES = {"rn50-st-finetune": rn50_st_finetune}
