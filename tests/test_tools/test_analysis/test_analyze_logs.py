"""analyze_logs.py: logs are read and put together right, and what is drawn is read back
from matplotlib's own panels and from the picture."""

import json

import numpy as np
import pytest
from PIL import Image

from vig_mm.errors import UsageError


@pytest.fixture(scope="module")
def analyze_logs(analysis_tool):
    return analysis_tool("analyze_logs")


def train(step, loss, epoch=None, **others):
    counted = {} if epoch is None else dict(epoch=epoch)
    return dict(lr=0.1, loss=loss, time=0.5, **others, **counted, iter=step, step=step)


def val(step, **metrics):
    return dict(metrics, data_time=0.01, time=0.2, step=step)


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def resumed(tmp_path):
    """Ten iterations an epoch; killed in epoch 3, resumed after epoch 2."""
    first = [train(5, 5.0, 1), train(10, 4.0, 1), val(1, **{"coco/bbox_mAP": 0.1})]
    first += [train(15, 3.0, 2), train(20, 2.5, 2), val(2, **{"coco/bbox_mAP": 0.2})]
    first += [train(25, 99.0, 3), train(30, 99.0, 3), val(3, **{"coco/bbox_mAP": 0.9})]
    second = [train(25, 2.0, 3), train(30, 1.5, 3), val(3, **{"coco/bbox_mAP": 0.3})]
    second[-1]["coco/bbox_mAP_50"] = 0.6
    write(tmp_path / "run/20260102_030405/vis_data/scalars.json", first)
    write(tmp_path / "run/20260102_110000/vis_data/scalars.json", second)
    return tmp_path / "run"


def test_resumed_run(analyze_logs, resumed):
    run = analyze_logs.read_run(resumed, "run")
    steps, losses = run.curve("loss", training=True)
    assert steps == [5, 10, 15, 20, 25, 30] and losses == [5.0, 4.0, 3.0, 2.5, 2.0, 1.5]
    assert run.curve("coco/bbox_mAP", training=False) == ([1, 2, 3], [0.1, 0.2, 0.3])
    assert run.unit(training=False) == "epoch"
    assert analyze_logs.choose([run], None) == [("loss", True), ("coco/bbox_mAP", False)]


def test_started_anew_in_the_same_folder(analyze_logs, resumed):
    write(resumed / "20260103_000000/vis_data/scalars.json", [train(5, 7.0, 1)])
    run = analyze_logs.read_run(resumed, "run")
    assert run.curve("loss", True) == ([5], [7.0])
    assert run.curve("coco/bbox_mAP", False) == ([], [])


def test_iterations(analyze_logs, tmp_path):
    lines = [train(50, 3.0), val(100, mIoU=30.0, aAcc=80.0), train(150, 2.0), val(200, mIoU=40.0)]
    run = analyze_logs.read_run(write(tmp_path / "scalars.json", lines), "run")
    assert run.unit(training=False) == "iteration"
    assert run.curve("mIoU", False) == ([100, 200], [30.0, 40.0])
    assert analyze_logs.choose([run], ["m*", "time"]) == [("mIoU", False), ("time", True)]
    with pytest.raises(UsageError, match=r"--keys mAP: .* there are lr, loss, time, mIoU"):
        analyze_logs.choose([run], ["mAP"])


def test_log_that_is_being_written_and_names(analyze_logs, tmp_path):
    path = write(tmp_path / "scalars.json", [train(1, 3.0), train(2, 2.0)])
    path.write_text(path.read_text()[:-20])
    assert analyze_logs.read_run(path, "run").curve("loss", True) == ([1], [3.0])
    paths = [tmp_path / name for name in ("a/run", "b/run", "c/other/vis_data/scalars.json")]
    assert analyze_logs.run_names(paths) == ["a/run", "b/run", "c/other"]
    assert analyze_logs.run_names(paths[1:]) == ["b/run", "c/other"]
    assert analyze_logs.run_names(paths[:1]) == ["run"]
    with pytest.raises(UsageError, match="a run is given twice"):
        analyze_logs.run_names([*paths, paths[2].parents[1]])


def test_picture(analyze_logs, resumed, tmp_path, monkeypatch):
    lines = [train(10 * i, 6 - i, i) for i in range(1, 6)] + [val(5, **{"coco/bbox_mAP": 0.4})]
    other = write(tmp_path / "other/20260101_000000/vis_data/scalars.json", lines)
    saved, save = [], analyze_logs.save_figure
    monkeypatch.setattr(analyze_logs, "save_figure", lambda *x: saved.append(x[0]) or save(*x))
    arguments = ["x", str(resumed), str(other), "--out", str(tmp_path / "p/c.png")]
    monkeypatch.setattr("sys.argv", arguments)
    analyze_logs.main()

    loss, precision = saved[0].axes
    assert (loss.get_title(), loss.get_xlabel()) == ("loss", "iteration")
    assert (precision.get_title(), precision.get_xlabel()) == ("coco/bbox_mAP", "epoch")
    assert np.array_equal(loss.get_lines()[1].get_ydata(), [5, 4, 3, 2, 1])
    assert np.array_equal(precision.get_lines()[0].get_xdata(), [1, 2, 3])
    (legend,) = saved[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["run", "other/20260101_000000"]
    image = np.asarray(Image.open(tmp_path / "p/c.png").convert("RGB")).astype(int)
    assert image.shape == (408, 1104, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
        assert (np.abs(image - colour).max(2) < 12)[:, :552].sum() > 150


def test_bad_input(analyze_logs, resumed, tmp_path):
    iterations = write(tmp_path / "i.json", [train(1, 2.0), val(1, **{"coco/bbox_mAP": 0.1})])
    (tmp_path / "void").mkdir()
    (tmp_path / "cfg.py").write_text("model = 1\n")
    for message, *paths in (
        ("there is no .*nowhere", tmp_path / "nowhere"),
        ("no vis_data/scalars.json under", tmp_path / "void"),
        ("is empty", write(tmp_path / "empty.json", [])),
        ("cfg.py:1 is no line of a training", tmp_path / "cfg.py"),
        ("list.json:1 is no line", write(tmp_path / "list.json", [[1, 2]])),
        ("share an axis: run in epochs, i.json in iterations", resumed, iterations),
    ):
        with pytest.raises(UsageError, match=message):
            runs = [analyze_logs.read_run(path, path.name) for path in paths]
            analyze_logs.plot(runs, [("coco/bbox_mAP", False)], tmp_path / "c.png")
    with pytest.raises(UsageError, match="choose by --keys"):
        run = analyze_logs.read_run(write(tmp_path / "x.json", [dict(time=1, step=1)]), "run")
        analyze_logs.choose([run], None)
