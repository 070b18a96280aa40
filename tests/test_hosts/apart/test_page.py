"""The code of docs/swap.md, from timm on, runs as it stands there."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "swap.md"


def test_every_block_runs() -> None:
    for library in ("segmentation_models_pytorch", "transformers", "peft", "torchao"):
        pytest.importorskip(library)
    names: dict = {}
    blocks = re.findall(
        r"```python\n(.*?)```", PAGE.read_text().partition("## Through timm")[2], re.DOTALL
    )
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert [m.shape[1] for m in names["maps"]] == [96, 192, 384, 768]
    assert len(names["feature_maps"]) == 4
