"""Export of a model to ONNX, and comparison of the file's outputs with the model's.

Needs `onnx`, `onnxscript` and `onnxruntime` (`pip install 'vig-mm[tools]'`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from vig_mm.errors import ExportError

from .onnx_ops import TRANSLATIONS

INPUT = "image"
AXES = {0: "batch", 2: "height", 3: "width"}


def export_onnx(
    model: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    outputs: Sequence[str],
    metadata: Mapping[str, object] | None = None,
) -> list[str]:
    """Write a model of images ``[B, C, H, W]`` with dynamic B, H and W where it allows that.

    Args:
        model: in eval mode, on the CPU; returns a tensor or a tuple of tensors.
        path: file to write; the weights go into it.
        size: (H, W) to trace the model at. Sizes that it treats in a special way make those of the
            graph special, too, among them maps with a side of 1.
        outputs: names of the outputs.
        metadata: stored in the file, as JSON.

    Returns:
        The names of the input's axes that are dynamic.

    Raises:
        ExportError: torch cannot trace or translate the model.
    """
    image = torch.randn(
        2, image_channels(model), *size
    )  # a batch of 1 would be taken for a constant
    shapes = ({axis: torch.export.Dim.AUTO for axis in AXES},)
    try:
        with torch.no_grad():
            program = torch.export.export(model, (image,), dynamic_shapes=shapes)
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                dynamic_shapes=(AXES,),
                input_names=[INPUT],
                output_names=list(outputs),
                custom_translation_table=TRANSLATIONS,
            )
    except Exception as error:  # torch raises errors of many kinds, from any depth of the model
        raise ExportError(
            f"torch cannot export {type(model).__name__} at {size[0]}x{size[1]}: "
            f"{type(error).__name__}: {_summary(error)}"
        ) from error
    for key, value in (metadata or {}).items():
        onnx_program.model.metadata_props[key] = json.dumps(value)
    onnx_program.save(str(path), external_data=False)
    found = onnx_program.model.graph.inputs[0].shape
    return [name for axis, name in AXES.items() if not isinstance(found[axis], int)]


def image_channels(model: nn.Module) -> int:
    """Channels of a model's images: those of its first convolution, 3 without one."""
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def compare_onnx(
    model: nn.Module, path: str | Path, shapes: Sequence[tuple[int, int, int]]
) -> list[dict[str, float]]:
    """The largest difference of every output between the file in onnxruntime and the model.

    Args:
        shapes: (B, H, W) of the random images to run.

    Returns:
        Per shape, the largest absolute difference / the largest value of the output, at least 1.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    errors = []
    for batch, height, width in shapes:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(batch, image_channels(model), height, width, generator=generator)
        with torch.no_grad():
            expected = model(image)
        expected = [expected] if isinstance(expected, Tensor) else expected
        got = [torch.from_numpy(x) for x in session.run(names, {INPUT: image.numpy()})]
        errors.append(
            {name: _difference(*pair) for name, *pair in zip(names, got, expected, strict=True)}
        )
    return errors


def _difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return float("inf")
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


def _summary(error: Exception) -> str:
    """The line that tells most of an error: the innermost of torch's exporter, else the first."""
    while isinstance(error, torch.onnx.OnnxExporterError) and error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
