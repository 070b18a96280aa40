"""Translations to ONNX for torch's exporter: our operator, and two of torch's own.

    torch.onnx.export(model, (image,), "model.onnx", dynamo=True,
                      custom_translation_table=TRANSLATIONS)

needs `onnxscript`. The graphs have standard ONNX operators only (opset 18 or later).
"""

import operator
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT64, graph, script
from onnxscript import opset18 as op

from vig_mm.kernels import GATE_LOGIT_NORMALIZER  # registers the operator, too

CHUNK = 32  # of 16, 32 and 64 the fastest in onnxruntime on a CPU, a power of two
FLOAT32 = ir.DataType.FLOAT
Floats = TypeVar("Floats", FLOAT, DOUBLE, FLOAT16, BFLOAT16)
Gates = TypeVar("Gates", FLOAT, DOUBLE, FLOAT16, BFLOAT16)


def bidirectional_gla_to_onnx(
    q: Floats,
    k: Floats,
    v: Floats,
    gate_f: Gates,
    gate_b: Gates,
    backend: str = "chunked",
    out_dtype: int | None = None,
) -> Floats:
    """The operator for any number of tokens, in float32; ``backend`` has no meaning here.

    Chunk by chunk, with the tree of pairs that `vig_mm/kernels/triton/tile.py` describes: every
    exponent is a sum of log gates, none of them above 0, so any gate is exact and no branch depends
    on the data. A Scan carries the states of both directions over the chunks.

    Args:
        q, k, gate_f, gate_b: ``[B, N, H, K]``; B and N may be dynamic.
        v: ``[B, N, H, V]``.
        out_dtype: ONNX type of the result; None is that of ``v``.
    """
    heads, width, v_width = q.shape[2], q.shape[3], v.shape[3]
    like = v
    x = op.Concat(*(op.Cast(t, to=FLOAT32) for t in (q, k, gate_f, gate_b, v)), axis=-1)
    tokens = op.Shape(x, start=1, end=2)
    missing = op.Mod(op.Neg(tokens), _ints(CHUNK))
    x = op.Pad(x, op.Concat(_ints(0, 0, 0, 0, 0), missing, _ints(0, 0), axis=0))
    x = op.Reshape(x, _ints(0, -1, CHUNK, heads, 4 * width + v_width))
    x = op.Transpose(x, perm=[0, 3, 1, 4, 2])  # [B, H, M, 4K + V, C]
    q, k, gate_f, gate_b, v = _split(x, [width] * 4 + [v_width], axis=3)
    v = _transpose(v)
    log_gates = _log_alpha(op.Concat(gate_f, gate_b, axis=-1))  # [B, H, M, K, 2C]

    qk = op.Concat(q, k, axis=-1)
    pairs = op.Mul(op.MatMul(_transpose(q), k), _float(2.0))  # right on the diagonal only
    for sums, mask in _levels(CHUNK):
        decayed = op.Mul(qk, op.Exp(op.MatMul(log_gates, _constant(sums))))
        q_level, k_level = _split(decayed, [CHUNK, CHUNK], axis=-1)
        pairs = op.Where(_constant(mask), op.MatMul(_transpose(q_level), k_level), pairs)

    factors = op.Exp(op.MatMul(log_gates, _constant(_border_sums(CHUNK))))
    q_f, k_f, q_b, k_b = _split(factors, [CHUNK] * 4, axis=-1)
    decay_f, decay_b = _slice(q_f, CHUNK - 1, CHUNK, -1), _slice(q_b, 0, 1, -1)  # of whole chunks
    update_f, update_b = (op.MatMul(op.Mul(k, factor), v) for factor in (k_f, k_b))
    zero = op.ConstantOfShape(op.Concat(op.Shape(x, start=0, end=2), _ints(width, v_width), axis=0))
    state_f, state_b = _entering_states(zero, decay_f, update_f, decay_b, update_b)

    out = op.MatMul(pairs, v)
    for factor, state in ((q_f, state_f), (q_b, state_b)):
        out = op.Add(out, op.MatMul(_transpose(op.Mul(q, factor)), state))
    out = op.Mul(out, _float(0.5 * width**-0.5))
    out = op.Transpose(out, perm=[0, 2, 3, 1, 4])
    out = op.Reshape(out, _ints(0, -1, heads, v_width))
    out = op.Slice(out, _ints(0), tokens, _ints(1))
    return op.CastLike(out, like) if out_dtype is None else op.Cast(out, to=out_dtype)


@script(op)
def _entering_states(
    zero: FLOAT, decay_f: FLOAT, update_f: FLOAT, decay_b: FLOAT, update_b: FLOAT
) -> tuple[FLOAT, FLOAT]:
    """``[B, H, M, K, V]``: what enters every chunk from the left and from the right."""

    @graph()
    def step(t_f, t_b, decay_f, update_f, decay_b, update_b):
        next_f = t_f * decay_f + update_f
        next_b = t_b * decay_b + update_b
        enters_f = op.Identity(t_f)
        enters_b = op.Identity(t_b)
        return next_f, next_b, enters_f, enters_b

    last_f, last_b, states_f, states_b = op.Scan(
        zero,
        zero,
        decay_f,
        update_f,
        decay_b,
        update_b,
        body=step,
        num_scan_inputs=4,
        scan_input_axes=[2, 2, 2, 2],
        scan_input_directions=[0, 0, 1, 1],
        scan_output_axes=[2, 2],
        scan_output_directions=[0, 1],
    )
    return states_f, states_b


def _levels(size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per level i: which log gates each token sums, and which pairs (t, s) the level holds.

    Returns:
        ``[2C, 2C]`` float32, from the gates (forward | backward) to the exponents of (q | k), and
        ``[C, C]`` bool.
    """
    t, s = np.arange(size)[:, None], np.arange(size)[None]
    levels = []
    for i in range(size.bit_length() - 1):
        middle = (t >> (i + 1) << (i + 1)) + (1 << i)
        right = t >= middle
        of_q = [right & (middle <= s) & (s <= t), ~right & (t <= s) & (s < middle)]
        of_k = [~right & (t < s) & (s < middle), right & (middle <= s) & (s < t)]
        levels.append((np.block([of_q, of_k]).T.astype(np.float32), ((t ^ s) >> i) == 1))
    return levels


def _border_sums(size: int) -> np.ndarray:
    """``[2C, 4C]``: the same up to the chunk's ends, for q and k forward, q and k backward."""
    t, s = np.arange(size)[:, None], np.arange(size)[None]
    no = np.zeros((size, size), bool)
    return np.block([[s <= t, no], [s > t, no], [no, s >= t], [no, s < t]]).T.astype(np.float32)


def _log_alpha(logit: ir.Value) -> ir.Value:
    """logsigmoid(logit) / 16, exact also where the sigmoid is nearly 1."""
    small = op.Exp(op.Neg(op.Abs(logit)))
    rounded = op.Add(_float(1.0), small)
    # log(1 + x) = log(u) x / (u - 1) with u = 1 + x rounded: the rounding error cancels
    lost = op.Equal(rounded, _float(1.0))
    step = op.Where(lost, _float(1.0), op.Sub(rounded, _float(1.0)))
    log1p = op.Where(lost, small, op.Mul(op.Log(rounded), op.Div(small, step)))
    return op.Div(op.Sub(op.Min(logit, _float(0.0)), log1p), _float(GATE_LOGIT_NORMALIZER))


def floordiv_to_onnx(a: INT64, b: INT64) -> INT64:
    """a // b of sizes; torch's own translation rounds negative ones towards zero.

    `-(-size // stride)` is the usual way to round up.
    """
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def adaptive_avg_pool2d_to_onnx(x: FLOAT, output_size: Sequence[int]) -> FLOAT:
    """``[B, C, h, w]`` -> ``[B, C, *output_size]``; torch's own takes no dynamic h and w."""
    rows = _pooling(op.Shape(x, start=2, end=3), output_size[0])
    columns = _pooling(op.Shape(x, start=3, end=4), output_size[1])
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))


def _pooling(size: ir.Value, cells: int) -> ir.Value:
    """``[cells, size]``: cell i is the mean from floor(i size / cells) to ceil((i + 1) size /
    cells)."""
    i = np.arange(cells, dtype=np.int64)[:, None]
    start = op.Div(op.Mul(_constant(i), size), _ints(cells))
    end = op.Div(op.Add(op.Mul(_constant(i + 1), size), _ints(cells - 1)), _ints(cells))
    place = op.Range(_int(0), op.Squeeze(size), _int(1))
    inside = op.And(op.GreaterOrEqual(place, start), op.Less(place, end))
    lengths = op.Cast(op.Sub(end, start), to=FLOAT32)
    return op.Div(op.Cast(inside, to=FLOAT32), lengths)


def _constant(x: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(x))


def _ints(*values: int) -> ir.Value:
    return op.Constant(value_ints=list(values))


def _int(value: int) -> ir.Value:
    return op.Constant(value_int=value)


def _float(value: float) -> ir.Value:
    return op.Constant(value_float=value)


def _transpose(x: ir.Value) -> ir.Value:
    return op.Transpose(x, perm=[0, 1, 2, 4, 3])


def _slice(x: ir.Value, start: int, end: int, axis: int) -> ir.Value:
    return op.Slice(x, _ints(start), _ints(end), _ints(axis))


def _split(x: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    ends = np.cumsum(sizes).tolist()
    return [_slice(x, end - size, end, axis) for size, end in zip(sizes, ends, strict=True)]


TRANSLATIONS = {
    torch.ops.vig_mm.bidirectional_gla.default: bidirectional_gla_to_onnx,
    torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d_to_onnx,
    torch.ops.aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d_to_onnx,
    operator.floordiv: floordiv_to_onnx,
}
