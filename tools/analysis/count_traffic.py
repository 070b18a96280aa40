"""Count what a training step keeps and moves in memory, of any config's model, without a GPU.

Examples:
    python tools/analysis/count_traffic.py configs/mmdet/mask-rcnn_vig-h-t_fpn_1x_coco.py
    python tools/analysis/count_traffic.py configs/mmdet/*_1x_coco.py --size 512 512 --json traffic.json
    python tools/analysis/count_traffic.py CONFIG --device cpu --top 12

Counted are, for one image through the backbone (of a detector or segmentor) or classifier, in
float32, forward pass and backward pass:

- kept: bytes that autograd holds between the two, parameters not included;
- traffic: bytes that the operators read and write, each operator's tensors once.

Dense training on a GPU is bound by memory, so traffic ranks the time of models there, and what is
kept bounds the batch; neither is a measurement. Views and empty allocations move nothing. Of a
custom operator its inputs and outputs count, not what it moves inside; linear layers count as the
two products that they are. `--device meta` (the default) computes nothing and takes our models with
their Triton kernels; `--device cpu` runs them as a CPU does, block by block: what is kept is then
what a CPU keeps, the traffic counts what stays in the cache as well.
"""  # noqa: E501

# ruff: noqa: E402
import argparse
import collections
import json
from pathlib import Path

from vig_mm.engine.environment import exit_without_mmengine

exit_without_mmengine()

import torch
from measuring import significant
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common import markdown, write  # isort: skip

from vig_mm.engine.launch import UsageError, load_config, run

SIZE = (512, 512)
MOVES_NOTHING = (
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("detach", "t", "_reshape_alias", "_unsafe_view"),
)


class TrafficMode(TorchDispatchMode):
    """Bytes read and written, and calls, of every operator that moves something."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: collections.Counter = collections.Counter()
        self.calls: collections.Counter = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removeprefix("vig_mm::")
        aliases = any(
            x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns
        )
        if not (func.is_view or aliases or name in MOVES_NOTHING):
            self.bytes[name] += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if _is(x))
            self.calls[name] += 1
        return out


def _is(x: object) -> bool:
    return isinstance(x, Tensor)


def traffic(model: nn.Module, image: Tensor) -> dict:
    """Of a training step whose loss is the sum of all outputs.

    Args:
        model: in train mode, of images, to a tensor or nested tuples of tensors; on image's device.
        image: ``[B, 3, H, W]``.

    Returns:
        ``kept``: bytes that autograd holds after the forward pass; ``forward``, ``training``: bytes
        moved by the forward pass and by both; ``operators``: calls in both; ``by_operator``: name
        to bytes moved in both, the largest first.
    """
    kept: dict[int, int] = {}
    alive = []  # or another storage might get the place of one that is gone

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(storage)
        return x

    parameters = {x.untyped_storage()._cdata for x in model.parameters()}
    mode = TrafficMode()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), mode:
        outputs = model(image)
    forward = mode.bytes.total()
    loss = sum(x.sum() for x in tree_leaves(outputs) if _is(x) and x.requires_grad)
    with mode:
        loss.backward()
    return {
        "kept": sum(size for key, size in kept.items() if key not in parameters),
        "forward": forward,
        "training": mode.bytes.total(),
        "operators": mode.calls.total(),
        "by_operator": dict(mode.bytes.most_common()),
    }


def trained_part(cfg: Config, device: str) -> nn.Module:
    """The backbone of a config's model, or the whole classifier, in train mode on a device.

    Raises:
        UsageError: the model has no backbone.
    """
    settings = cfg.model.get("backbone")
    if settings is None:
        raise UsageError(f"the config's model, {cfg.model.get('type')}, has no backbone to count")
    kernels = settings.get("type", "").startswith("vig_mm.") and device == "meta"
    if kernels:
        settings.backend = "triton"
    settings.pop("init_cfg", None)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = revert_sync_batchnorm(registry.build(settings))
    model.train()
    return model.to(device)


def count(cfg: Config, size: tuple[int, int] = SIZE, device: str = "meta") -> dict:
    """`traffic` of the backbone of a config's model for one image of ``size`` (H, W)."""
    return traffic(trained_part(cfg, device), torch.zeros(1, 3, *size, device=device))


def table(results: dict[str, dict]) -> str:
    lines = [
        [name, significant(x["kept"] / 2**20), significant(x["forward"] / 2**30),
         significant(x["training"] / 2**30), str(x["operators"])]
        for name, x in results.items()
    ]  # fmt: skip
    columns = ["", "kept, MiB", "traffic forward, GiB", "forward + backward, GiB", "operators"]
    return markdown(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument(
        "--size", nargs=2, type=int, default=SIZE, metavar=("H", "W"), help="default: 512 512"
    )
    parser.add_argument("--device", choices=("meta", "cpu"), default="meta")
    parser.add_argument("--top", type=int, default=0, help="operators that move most to be listed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    if min(args.size) < 32:
        parser.error(f"--size: at least 32 pixels, got {args.size[0]} {args.size[1]}")
    results = {}
    for path in args.configs:
        options = dict(cfg_options=None, work_dir=None, launcher="none", local_rank=0)
        cfg = load_config(argparse.Namespace(config=path, **options))
        results[Path(path).stem] = count(cfg, tuple(args.size), args.device)
    print(table(results))
    for name, found in results.items():
        for operator, moved in list(found["by_operator"].items())[: args.top]:
            print(f"{name}: {operator} {significant(moved / 2**30)} GiB")
    if args.json:
        settings = {"size": list(args.size), "device": args.device, "precision": "float32"}
        write(args.json, json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
        print(f"written: {args.json}")


if __name__ == "__main__":
    run(main)
