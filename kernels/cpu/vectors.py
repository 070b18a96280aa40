"""Vectors of float32 as values in numba functions, what `triton.language` is to Triton's kernels.

Each operation is an instruction or two of LLVM. It may fuse x * y + z and may reorder nothing, so
NaN and inf keep their meaning. A float beside vectors counts for every lane. Pointers are int64.
"""

import inspect
import operator
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

from .host import LANES

F32, I8, I16, I32, I64 = ir.FloatType(), *map(ir.IntType, (8, 16, 32, 64))
FLOATS, HALFS, INTS, SHORTS = (ir.VectorType(x, LANES) for x in (F32, ir.HalfType(), I32, I16))
FUSED = ("contract",)


class Lanes(types.Type):
    def __init__(self, name: str, element: ir.Type):
        super().__init__(name=f"{name} x {LANES}")
        self.ir = ir.VectorType(element, LANES)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm, kind):
        super().__init__(dmm, kind, kind.ir)


VECTOR, MASK = Lanes("float32", F32), Lanes("bool", ir.IntType(1))
OPERANDS = ((VECTOR, VECTOR), (VECTOR, types.Float), (types.Float, VECTOR))
ANY = ((types.VarArg(types.Any),),)


def define(function: Callable, result: types.Type, emit: Callable, kinds: tuple = ANY) -> None:
    """``function`` becomes what ``emit(builder, ...)`` writes, its floats spread to vectors."""

    @type_callable(function)
    def typer(context):
        def resolve(*args):
            return result if kinds is ANY or VECTOR in args else None

        _, *parameters = inspect.signature(emit).parameters.values()
        resolve.pysig = inspect.Signature(parameters)
        return resolve

    def lower(context, b, signature, args):
        def spread(x, kind):
            if not isinstance(kind, types.Float):
                return x
            none = ir.Constant(FLOATS, ir.Undefined)
            x = context.cast(b, x, kind, types.float32)
            return b.shuffle_vector(
                b.insert_element(none, x, ir.Constant(I32, 0)), none, ir.Constant(INTS, None)
            )

        value = emit(b, *map(spread, args, signature.args))
        return context.get_dummy_value() if result is types.void else value

    for kind in kinds:
        lower_builtin(function, *kind)(lower)


def instruction(result: types.Type) -> Callable:
    def decorate(emit: Callable) -> Callable:
        define(emit, result, emit)
        return emit

    return decorate


define(operator.add, VECTOR, lambda b, x, y: b.fadd(x, y, flags=FUSED), OPERANDS)
define(operator.sub, VECTOR, lambda b, x, y: b.fsub(x, y, flags=FUSED), OPERANDS)
define(operator.mul, VECTOR, lambda b, x, y: b.fmul(x, y, flags=FUSED), OPERANDS)
define(operator.truediv, VECTOR, lambda b, x, y: b.fdiv(x, y), OPERANDS)
define(operator.lt, MASK, lambda b, x, y: b.fcmp_ordered("<", x, y), OPERANDS)
define(operator.gt, MASK, lambda b, x, y: b.fcmp_ordered(">", x, y), OPERANDS)
define(operator.ne, MASK, lambda b, x, y: b.fcmp_unordered("!=", x, y), OPERANDS)


def _ints(value: int) -> ir.Constant:
    return ir.Constant(INTS, [value] * LANES)


def _call(b, name: str, result, *args):
    kind = ir.FunctionType(result, [x.type for x in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _at(b, address, kind):
    return b.inttoptr(address, kind.as_pointer())


@instruction(VECTOR)
def full(b, x):
    return x


@instruction(VECTOR)
def where(b, mask, x, y):
    return b.select(mask, x, y)


@instruction(VECTOR)
def absolute(b, x):
    return _call(b, f"llvm.fabs.v{LANES}f32", FLOATS, x)


@instruction(types.float32)
def total(b, x):
    """Sum over the lanes."""
    kind = ir.FunctionType(F32, [F32, FLOATS])
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    add = cgutils.get_or_insert_function(b.module, kind, name)
    return b.call(add, [ir.Constant(F32, 0.0), x], fastmath=("reassoc",))


@instruction(VECTOR)
def power(b, x):
    """2^-n of x = 1.5 * 2^23 + n, whose lowest bits are n."""
    exponent = b.sub(_ints(0x4B400000 + 127), b.bitcast(x, INTS))
    return b.bitcast(b.shl(exponent, _ints(23)), FLOATS)


@instruction(types.float32)
def scalar(b, address):
    return b.load(_at(b, address, F32), align=4)


@instruction(VECTOR)
def load(b, address):
    return b.load(_at(b, address, FLOATS), align=4)


@instruction(VECTOR)
def load_bfloat16(b, address):
    bits = b.zext(b.load(_at(b, address, SHORTS), align=2), INTS)
    return b.bitcast(b.shl(bits, _ints(16)), FLOATS)


@instruction(VECTOR)
def load_float16(b, address):
    return b.fpext(b.load(_at(b, address, HALFS), align=2), FLOATS)


@instruction(types.void)
def store(b, address, x):
    b.store(x, _at(b, address, FLOATS), align=4)


@instruction(types.void)
def store_scalar(b, address, x):
    b.store(b.extract_element(x, ir.Constant(I32, 0)), _at(b, address, F32), align=4)


@instruction(types.void)
def store_bfloat16(b, address, x):
    """Rounded to nearest even, NaN apart."""
    bits = b.bitcast(x, INTS)
    odd = b.and_(b.lshr(bits, _ints(16)), _ints(1))
    rounded = b.add(bits, b.add(odd, _ints(0x7FFF)))
    bits = b.select(b.fcmp_unordered("uno", x, x), _ints(0x7FC00000), rounded)
    b.store(b.trunc(b.lshr(bits, _ints(16)), SHORTS), _at(b, address, SHORTS), align=2)


@instruction(types.void)
def store_float16(b, address, x):
    b.store(b.fptrunc(x, HALFS), _at(b, address, HALFS), align=2)


@instruction(types.void)
def prefetch(b, address):
    """A row that is soon used, beyond what the CPU fetches by itself."""
    flags = (ir.Constant(I32, n) for n in (0, 3, 1))  # for reading, into L1, data
    _call(b, "llvm.prefetch.p0", ir.VoidType(), _at(b, address, I8), *flags)
