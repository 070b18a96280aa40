"""One training iteration and one prediction of a whole config, as mmengine's Runner does them."""

from pathlib import Path

import pytest
import torch
from batches import batch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn


def train_and_predict(
    cfg: Config,
    size: tuple[int, int],
    work_dir: Path,
    test_size: tuple[int, int] | None = None,
    whole: bool = False,
) -> tuple[nn.Module, OptimWrapper]:
    """Build, train one iteration on two random images, predict two, and check all three.

    Args:
        cfg: A whole config; of its entries only the model's and the optimizer's are used.
        size: (H, W) of the images.
        work_dir: Where mmengine writes its log.
        test_size: (H, W) of the images to predict; None is `size`.
        whole: every parameter has to take part, not only those of the backbone.

    Returns:
        The model and its optimizer.
    """
    needed = ("default_scope", "model", "data_preprocessor")  # it prints all it is given, slowly
    runner = Runner(
        **{key: cfg[key] for key in needed if key in cfg},
        work_dir=str(work_dir),
        experiment_name=str(work_dir),  # the default, the time in seconds, is not unique
        randomness=dict(seed=0),
    )
    wrapper = dict(cfg.optim_wrapper)
    if not torch.cuda.is_available():  # mixed precision needs a GPU
        wrapper["type"] = "OptimWrapper"
        for option in ("dtype", "loss_scale"):
            wrapper.pop(option, None)
    optimizer = runner.build_optim_wrapper(wrapper)
    model = runner.model
    model.init_weights()
    model.train()
    backbone, reached = getattr(model, "backbone", model), set()
    wanted = dict((model if whole else backbone).named_parameters())
    for name, parameter in wanted.items():
        parameter.register_hook(lambda grad, name=name: reached.add(name))
    stem = next(backbone.parameters())
    before = stem.detach().clone()
    data = batch(cfg, size)
    losses = model.train_step(data, optimizer)
    assert all(value.isfinite().all() for value in losses.values())
    # distributed training stops at a parameter that takes no part
    assert reached == wanted.keys()
    assert all(parameter.isfinite().all() for parameter in wanted.values())
    assert not torch.equal(stem, before)

    if test_size is not None:
        data = batch(cfg, test_size)
    with torch.no_grad():
        predictions = model.eval().test_step(data)
    assert len(predictions) == 2
    for sample in predictions:
        if cfg.default_scope == "mmdet":
            found = sample.pred_instances
            assert found.scores.isfinite().all()
            assert len(found.bboxes) == len(found.scores)
            assert "masks" not in found or found.masks.shape == (len(found), *(test_size or size))
        elif cfg.default_scope == "mmseg":
            assert sample.pred_sem_seg.shape == (test_size or size)
            assert sample.seg_logits.data.isfinite().all()
        else:
            assert sample.pred_score.sum().item() == pytest.approx(1, abs=1e-5)
    return model, optimizer
