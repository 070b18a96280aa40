"""All six models against the public implementation, through the project's own classifier config."""

import pytest
import torch
from golden import CONFIGS, MODELS, backbone_config, check_outputs, public_state
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from vig_mm.checkpoints.conversion import to_classifier


def build_classifier(name: str) -> torch.nn.Module:
    file = "vig-h-t_8xb128_in1k.py" if "_h_" in name else "vig-t_8xb128_in1k.py"
    cfg = Config.fromfile(CONFIGS / "mmpretrain" / file).model
    cfg.backbone.arch = backbone_config(name)["arch"]
    widths = dict(vig_small=384, vig_base=768, vig_h_base=1024)
    cfg.head.in_channels = widths.get(name, cfg.head.in_channels)
    init_default_scope("mmpretrain")
    return MMPRETRAIN_MODELS.build(cfg).eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_stages(name):
    model = build_classifier(name)
    model.double().load_state_dict(to_classifier(public_state(name)), strict=True)
    stages = []
    for stage in getattr(model.backbone, "layers", []):
        stage.blocks[-1].register_forward_hook(lambda module, args, out: stages.append(out))

    def outputs(image):
        stages.clear()
        return model(image, mode="tensor"), stages

    check_outputs(name, model, outputs, {torch.float64: 1e-8, torch.float32: 3e-5})
