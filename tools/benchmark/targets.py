"""The targets for an H100 or H200 (ratios within one run), checked against measured results.

A target is reached, missed, or open: what it compares with has not been measured.
"""

from collections.abc import Iterable
from typing import NamedTuple

FLA_RATIO, FLA_RATIO_LONG, FLA_LONG_TOKENS, FLA_MEMORY = 2.5, 4.0, 3136, 0.5
RECURRENT, RECURRENT_TOKENS = 10.0, 4096
BANDWIDTH_SHARE, BANDWIDTH_TOKEN_HEADS = 0.35, 1_000_000
MAX_ERROR = 2e-2  # relative, of bf16 against float32; a wrong kernel is far beyond it
EAGER_RATIO, SDPA_RATIO, EAGER_MEMORY, DEIT_B_RATIO = 4.8, 1.5, 0.1, 2.0
MODES = ("forward", "forward_backward")
FLA = ("fla two passes", "fla batched")


class Target(NamedTuple):
    name: str
    reached: bool | None  # None: open
    found: str

    def __str__(self) -> str:
        word = {True: "reached", False: "MISSED", None: "open"}[self.reached]
        return f"{word:8} {self.name}: {self.found}"


def minimum_bytes(shape: dict[str, int], training: bool) -> int:
    """What a pass must move in bf16: every input read once, every output written once.

    Forward: q, k and two gates in, v in, o out: 8 K + 4 V bytes a token and head. Backward: these
    inputs and do in, five gradients out: 16 K + 6 V. Training is both.
    """
    per_token_head = 8 * shape["K"] + 4 * shape["V"]
    if training:
        per_token_head += 16 * shape["K"] + 6 * shape["V"]
    return per_token_head * shape["B"] * shape["N"] * shape["H"]


def median(entry: dict | None) -> float | None:
    """Seconds of a rival; None where it was left out or failed."""
    return entry.get("median") if entry else None


def fastest(rivals: dict[str, dict], names: Iterable[str]) -> str | None:
    """The rival among ``names`` with the least time, if any has one."""
    timed = [name for name in names if median(rivals.get(name)) is not None]
    return min(timed, key=lambda name: rivals[name]["median"], default=None)


def is_right(row: dict) -> bool:
    """Whether our operator ran in both modes and agreed with the float32 one."""
    ran = all("median" in row[mode]["ours"] for mode in MODES)
    return ran and all(x <= MAX_ERROR for x in row["error"].values())


def _each(
    name: str, values: dict[str, float], bound: float, *, at_least: bool, total: int
) -> Target:
    """All of ``values`` must keep to ``bound``; reports the worst one and how many do not."""
    if not values:
        return Target(name, None, f"nothing measured in {total} shapes")
    worst = (min if at_least else max)(values, key=values.__getitem__)
    bad = sum(x < bound if at_least else x > bound for x in values.values())
    found = f"{values[worst]:.2f} at worst ({worst}); {len(values) - bad} of {len(values)} shapes"
    return Target(name, bad == 0, found)


def operator_targets(results: list[dict]) -> list[Target]:
    """Of the operator's rows, as `gpu_operator.measure` writes them."""
    ratios: dict[str, dict[str, float]] = {
        key: {}
        for key in (
            "fla_forward",
            "fla_training",
            "fla_forward_long",
            "fla_training_long",
            "fla_memory",
            "recurrent",
            "share",
        )
    }
    for row in results:
        shape, label = row["shape"], row["label"]
        for mode, key in (("forward", "fla_forward"), ("forward_backward", "fla_training")):
            rivals = row[mode]
            ours = median(rivals["ours"])
            if ours is None:
                continue
            if name := fastest(rivals, FLA):
                ratios[key][label] = rivals[name]["median"] / ours
                if shape["N"] >= FLA_LONG_TOKENS:
                    ratios[f"{key}_long"][label] = ratios[key][label]
            peaks = [
                rivals[name]["peak_bytes"] for name in FLA if "peak_bytes" in rivals.get(name, {})
            ]
            if peaks and "peak_bytes" in rivals["ours"]:
                share = rivals["ours"]["peak_bytes"] / min(peaks)
                ratios["fla_memory"][f"{label} {mode}"] = share
            if shape["N"] >= RECURRENT_TOKENS and (x := median(rivals.get("recurrent"))):
                ratios["recurrent"][label] = x / ours
            if shape["B"] * shape["N"] * shape["H"] >= BANDWIDTH_TOKEN_HEADS:
                ratios["share"][f"{label} {mode}"] = row["bandwidth_share"][mode]
    total = len(results)
    wrong = [str(row["label"]) for row in results if not is_right(row)]
    graphs = [entry for row in results for entry in row["graph"].values()]
    captured = sum("median" in entry for entry in graphs)
    return [
        Target(
            f"runs, with errors <= {MAX_ERROR}, in every shape measured",
            None if not results else not wrong,
            f"{total - len(wrong)} of {total} shapes" + "".join(f"; NOT {x}" for x in wrong),
        ),
        *(
            _each(
                f"{name} >= {bound:g}x the faster use of FLA's chunk_gla{where}",
                ratios[key + suffix], bound, at_least=True, total=total,
            )
            for bound, suffix, where in (
                (FLA_RATIO_LONG, "_long", f" for N >= {FLA_LONG_TOKENS}"),
                (FLA_RATIO, "", ""),
            )
            for name, key in (("forward", "fla_forward"), ("forward+backward", "fla_training"))
        ),
        _each(
            f"peak memory <= {FLA_MEMORY} of FLA's lower one",
            ratios["fla_memory"], FLA_MEMORY, at_least=False, total=total,
        ),
        _each(
            f"forward >= {RECURRENT:g}x the recurrence for N >= {RECURRENT_TOKENS}",
            ratios["recurrent"], RECURRENT, at_least=True, total=total,
        ),
        _each(
            f"share of the copy bandwidth >= {BANDWIDTH_SHARE} for B N H >= 1 M",
            ratios["share"], BANDWIDTH_SHARE, at_least=True, total=total,
        ),
        Target(
            "can be captured in a CUDA graph, so waits for nothing, at batch 1",
            captured == len(graphs) if graphs else None,
            f"{captured} of {len(graphs)} captures",
        ),
    ]  # fmt: skip


def backbone_targets(results: list[dict]) -> list[Target]:
    """Of the whole models' rows, as `gpu_backbones.measure` writes them; forward passes."""
    forward = {
        (row["size"], name): entry
        for row in results
        if row["mode"] == "forward"
        for name, entry in row["models"].items()
    }

    def compare(
        name: str, size: int, ours: str, rival: str, key: str, bound: float, *, at_least: bool
    ) -> Target:
        a, b = (forward.get((size, model), {}) for model in (ours, rival))
        if key not in a or key not in b:
            missing = (
                f"{model}: {entry.get('missing', 'not measured')}"
                for model, entry in ((ours, a), (rival, b))
                if key not in entry
            )
            return Target(name, None, "; ".join(missing))
        ratio = a[key] / b[key]
        return Target(name, ratio >= bound if at_least else ratio <= bound, f"{ratio:.2f}")

    deit_b = fastest(
        {m: forward.get((224, m), {}) for m in ("DeiT-B", "DeiT-B softmax")},
        ("DeiT-B", "DeiT-B softmax"),
    )
    return [
        compare(
            f"1024x1024: ViG-T >= {EAGER_RATIO}x DeiT-T softmax",
            1024, "ViG-T", "DeiT-T softmax", "images_per_s", EAGER_RATIO, at_least=True,
        ),
        compare(
            f"1024x1024: ViG-T >= {SDPA_RATIO}x DeiT-T with SDPA",
            1024, "ViG-T", "DeiT-T", "images_per_s", SDPA_RATIO, at_least=True,
        ),
        compare(
            f"1024x1024: peak memory of ViG-T <= {EAGER_MEMORY} of DeiT-T softmax",
            1024, "ViG-T", "DeiT-T softmax", "peak_bytes", EAGER_MEMORY, at_least=False,
        ),
        compare(
            f"224x224: ViG-S >= {DEIT_B_RATIO}x DeiT-B (the faster of softmax and SDPA)",
            224, "ViG-S", deit_b or "DeiT-B", "images_per_s", DEIT_B_RATIO, at_least=True,
        ),
    ]  # fmt: skip
