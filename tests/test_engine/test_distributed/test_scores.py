"""Two processes report the scores of one, also when one of them has an image less."""

import json
import pickle
from pathlib import Path

import known_cases
import pytest
import torch
from launches import run_tools

# A third picture, so that a sampler fills up with one that the other process has, too.
THIRD = ((160, 160), {"brick": (10, 10, 90, 70), "pond": (30, 90, 150, 150)})
IMAGES = {"mmdet": 3, "mmseg": 3, "mmpretrain": 5}


@pytest.fixture(scope="module")
def tested(tmp_path_factory) -> dict[int, Path]:
    """Per number of processes the folder of the three tasks' results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_cases, "SCENES", [*known_cases.SCENES, THIRD])
        cases = known_cases.known_cases(tmp_path_factory.mktemp)
    (cases["mmpretrain"].data / "val/pond/1.png").unlink()
    for case in cases.values():
        # leaf and pond are confused with what has their hue, so that no score is full
        weights = torch.load(case.checkpoint)
        weights["state_dict"]["colours"][-2:] = torch.tensor([[0, 60, 60], [0, 150, 110]])
        torch.save(weights, case.checkpoint)
    folders = {}
    for processes in (1, 2):
        folder = folders[processes] = tmp_path_factory.mktemp(f"processes_{processes}")
        commands = []
        for scope, case in cases.items():
            out = ("--work-dir", folder / scope, "--out", folder / f"{scope}.pkl")
            commands.append(("test.py", case.config, case.checkpoint, *out))
        run_tools(folder, *commands, processes=processes)
    return folders


@pytest.mark.parametrize("scope", IMAGES)
def test_same_scores_and_predictions(scope: str, tested: dict[int, Path]) -> None:
    scores, images = {}, {}
    for processes, folder in tested.items():
        (report,) = (folder / scope).glob("*/*.json")
        # mmengine writes it in every process: a longer one may show behind it
        scores[processes], _ = json.JSONDecoder().raw_decode(report.read_text())
        for name in ("time", "data_time"):
            del scores[processes][name]
        predictions = pickle.loads((folder / f"{scope}.pkl").read_bytes())
        images[processes] = [one["img_path"] for one in predictions]
    assert scores[1] == scores[2]
    assert any(0 < score < 100 for score in scores[1].values())
    assert images[1] == images[2] and len(images[1]) == IMAGES[scope]
