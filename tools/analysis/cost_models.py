"""Classifiers whose cost `cost_vs_resolution.py` measures: ours, DeiT and timm's."""

import sys
from pathlib import Path

from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmark"))

from gpu_backbones import ARCHS, Classifier  # noqa: E402
from rivals import deit  # noqa: E402
from without_mm import stand_in  # noqa: E402

SOFTMAX = " softmax"  # DeiT with plain softmax attention, as in the paper, instead of SDPA
VIGS = ("ViG-T", "ViG-S", "ViG-B", "ViG-H-T", "ViG-H-S", "ViG-H-B")
DEITS = tuple(f"DeiT-{arch}{kind}" for arch in ARCHS for kind in ("", SOFTMAX))
TIMM = {
    "Swin-T": "swin_tiny_patch4_window7_224",
    "ConvNeXt-T": "convnext_tiny",
    "VOLO-D1": "volo_d1_224",
    "GC ViT-T": "gcvit_tiny",
    "MaxViT-T": "maxvit_rmlp_tiny_rw_256",
}
MODELS = (*VIGS, *DEITS, *TIMM)


def build(name: str, size: int) -> nn.Module:
    """A classifier of 1000 classes for square images of ``size`` pixels; random weights.

    Position embeddings fit ``size``. Windows and grids stay as small as in the papers, 7 or 8
    tokens wide, or cost would not be that of the published model.

    Raises:
        ValueError: the model does not take images of this size.
    """
    if name.startswith("DeiT"):
        return deit(ARCHS[name.split()[0][-1]], size, softmax=name.endswith(SOFTMAX))
    if name in TIMM:
        return _timm(name, size)
    stand_in()
    import vig_mm

    arch = ARCHS[name[-1]]
    if name.startswith("ViG-H"):
        backbone = vig_mm.HierViG(arch, out_indices=-1, drop_path_rate=0.0)
        return Classifier(backbone, backbone.channels[-1])
    backbone = vig_mm.ViG(arch, img_size=size)
    return Classifier(backbone, backbone.embed_dims)


def gcvit_windows(size: int) -> tuple[int, int, int, int]:
    """Windows of GC ViT's stages for square images: as wide as in the paper, or one token wider.

    Raises:
        ValueError: none fits, as global queries must shrink to one window by halves.
    """
    width, rest = divmod(size, 32)
    while width > 8 and width % 2 == 0:
        width //= 2
    if rest or width not in (7, 8):
        raise ValueError(f"GC ViT: no window of 7 or 8 fits an image of {size}")
    return (width, width, 2 * width, width)


def _timm(name: str, size: int) -> nn.Module:
    import timm

    settings: dict = {}
    if name in ("Swin-T", "VOLO-D1"):
        settings["img_size"] = size
    elif name == "GC ViT-T":
        settings |= dict(img_size=size, window_size=gcvit_windows(size))
    elif name == "MaxViT-T":
        sides = [side for side in (224, 256) if size % side == 0]
        if not sides:
            raise ValueError(f"MaxViT: no windows of 7 or 8 tile an image of {size}")
        settings["img_size"] = sides[0]  # sets the windows; any multiple of it runs
    return timm.create_model(TIMM[name], **settings)
