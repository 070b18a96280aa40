"""All six models against the public implementation, through the project's own classifier config."""

import numpy as np
import pytest
import torch
from golden import CONFIGS, DATA, MODELS, SIZES, backbone_config, image, public_state
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS

from vig_mm.checkpoints.conversion import to_classifier

PARAMETERS = {
    "vig_tiny": 5834536,
    "vig_small": 22615144,
    "vig_base": 89022184,
    "vig_h_tiny": 28600680,
    "vig_h_small": 50051688,
    "vig_h_base": 88904360,
}


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
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    model.double().load_state_dict(to_classifier(public_state(name)), strict=True)
    golden = np.load(DATA / f"{name}.npz")
    stages = []
    for stage in getattr(model.backbone, "layers", []):
        stage.blocks[-1].register_forward_hook(lambda module, args, out: stages.append(out))

    for dtype, bound in ((torch.float64, 1e-8), (torch.float32, 3e-5)):
        model.to(dtype)
        for height, width in SIZES:
            resized = "_h_" not in name and (height, width) != (224, 224)
            if resized and not torch.__version__.startswith("2.11."):
                # its position embedding is resized in float32, which torch rounds as its version
                bound = max(bound, 1e-6)
            stages.clear()
            with torch.no_grad():
                logits = model(image((height, width)).to(dtype), mode="tensor")[0]
            outputs = {"logits": logits}
            for i, tokens in enumerate(stages):
                channels, h, w = golden[f"stage{i}_shape_{height}x{width}"]
                assert tokens.shape == (1, h * w, channels)
                outputs[f"stage{i}"] = tokens.mean(dim=1)[0]
            assert len(outputs) == (5 if "_h_" in name else 1)
            for what, x in outputs.items():
                expected = torch.from_numpy(golden[f"{what}_{height}x{width}"])
                error = (x.double() - expected).norm() / expected.norm()
                assert error <= bound, f"{what} at {height}x{width} in {dtype}: {error:.1e}"
