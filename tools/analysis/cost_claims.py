"""The paper's claims of cost (arXiv 2405.18425) beside what `cost_vs_resolution.py` measured."""

from typing import NamedTuple

from cost_models import SOFTMAX

WITHOUT_DOWN = "flops_without_down_proj"


class Claim(NamedTuple):
    """A sentence of the paper, and the ``key`` of the result rows that it is about."""

    text: str
    paper: str
    size: int
    ours: str
    rival: str
    key: str
    kind: str  # "share": % of the rival's; "less": % less; "times"


_TINY, _BASE = ("ViG-T", "DeiT-T"), ("ViG-S", "DeiT-B")
CLAIMS = (
    Claim("parameters", "27 %", 224, *_BASE, "parameters", "share"),
    Claim("FLOPs", "20 %", 224, *_BASE, "flops", "share"),
    Claim("FLOPs without down_proj", "20 %", 224, *_BASE, WITHOUT_DOWN, "share"),
    Claim("faster", "2x", 224, *_BASE, "images_per_s", "times"),
    Claim("fewer FLOPs", "5.2x", 1024, *_TINY, "flops", "times"),
    Claim("fewer FLOPs without down_proj", "5.2x", 1024, *_TINY, WITHOUT_DOWN, "times"),
    Claim("less memory", "90 %", 1024, *_TINY, "peak_bytes", "less"),
    Claim("less memory, weights counted", "90 %", 1024, *_TINY, "total_bytes", "less"),
    Claim("faster", "4.8x", 1024, *_TINY, "images_per_s", "times"),
    Claim("fewer FLOPs", "17.4x", 2048, *_TINY, "flops", "times"),
    Claim("fewer FLOPs without down_proj", "17.4x", 2048, *_TINY, WITHOUT_DOWN, "times"),
    Claim("faster", "16.7x", 2048, *_TINY, "images_per_s", "times"),
)
COUNTED = ("parameters", "flops", WITHOUT_DOWN)


def _ratio(claim: Claim, ours: dict, rival: dict) -> float | None:
    """The rival's value over ours, of speed ours over the rival's; None where one is missing."""
    key = "flops" if claim.key == WITHOUT_DOWN else claim.key
    a, b = ours.get(claim.key), rival.get(key)
    if a is None or b is None:
        return None
    return a / b if key == "images_per_s" else b / a


def _say(claim: Claim, ratio: float) -> str:
    if claim.kind == "share":
        return f"{100 / ratio:.1f} %"
    if claim.kind == "less":
        saved = round(100 - 100 / ratio)
        return f"{saved} %" if saved >= 0 else f"{-saved} % more"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def evaluate(results: list[dict], device: str) -> list[dict]:
    """One entry a claim: what it says, and what was found against both kinds of attention.

    Args:
        results: rows of `cost_vs_resolution.py`.
        device: "cpu" or "cuda", where they were measured.

    Returns:
        dicts of ``claim``, ``paper``, ``key``, ``softmax`` and ``sdpa`` (the ratio, or None),
        ``softmax_text`` and ``sdpa_text`` (as the paper puts it, or why there is none), ``on``.
    """
    rows = {(row["model"], row["size"]): row for row in results}
    entries = []
    for claim in CLAIMS:
        ours = rows.get((claim.ours, claim.size), {})
        entry: dict = {
            "claim": f"{claim.ours} against {claim.rival} at {claim.size}x{claim.size}: "
            f"{claim.text}",
            "paper": claim.paper,
            "key": claim.key,
        }
        for kind, name in (("softmax", claim.rival + SOFTMAX), ("sdpa", claim.rival)):
            rival = rows.get((name, claim.size), {})
            entry[kind] = ratio = _ratio(claim, ours, rival)
            missing = ours.get("missing") or rival.get("missing") or "not measured"
            entry[f"{kind}_text"] = missing if ratio is None else _say(claim, ratio)
        if claim.key in COUNTED:
            entry["on"] = "counted"
        elif device == "cuda":
            entry["on"] = "GPU"
        else:
            entry["on"] = "CPU; the paper means a GPU"
        entries.append(entry)
    return entries
