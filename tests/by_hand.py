"""Scores worked out apart from the libraries' evaluators, from what tools/test.py dumps.

Only pycocotools is trusted (`tests/test_real_data.py` holds it against published scores); it is
called with its own defaults. Names and files say which class a label means, not the config.

Run on a dump of one's own, it prints what was reported beside what it finds, and fails where the
two differ by more than the evaluator's rounding:

    python tools/test.py CONFIG CHECKPOINT --work-dir runs/x --out runs/x/out.pkl
    python tests/by_hand.py coco runs/x/out.pkl runs/x/*/*.json instances_val2017.json

TRUTH is coco's annotation file, ade20k's folder of label maps, and nothing for imagenet, whose
pictures lie in folders of their classes' names.
"""

import argparse
import contextlib
import io
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

DIGITS = {"coco": 3, "ade20k": 2, "imagenet": 4}  # after the point, of what is reported
AP_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


def coco_scores(
    predictions: Sequence[dict], ann_file: Path, classes: Sequence[str]
) -> dict[str, float]:
    """Box and mask AP, as ``coco/bbox_mAP`` and so on; -1 where there is no object to find.

    Args:
        predictions: one dict an image: `img_id`, and `pred_instances` with boxes `[n, 4]` (x1, y1,
            x2, y2), scores `[n]`, labels `[n]` and RLE masks.
        ann_file: COCO file; only its categories that are named in ``classes`` count.
        classes: the name of each label.
    """
    content = json.loads(Path(ann_file).read_text())
    category = {one["name"]: one["id"] for one in content["categories"]}
    boxes, masks = [], []
    for image in predictions:
        found = image["pred_instances"]
        rows = zip(
            found["bboxes"].tolist(),
            found["scores"].tolist(),
            found["labels"].tolist(),
            found["masks"],
            strict=True,
        )
        for (x1, y1, x2, y2), score, label, mask in rows:
            what = dict(image_id=image["img_id"], category_id=category[classes[label]], score=score)
            boxes.append(dict(what, bbox=[x1, y1, x2 - x1, y2 - y1]))
            masks.append(dict(what, segmentation=mask))
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        for i, one in enumerate(content["annotations"], 1):
            one["id"] = i  # 0 means "not matched" to pycocotools
        truth.dataset = content
        truth.createIndex()
        for kind, results in (("bbox", boxes), ("segm", masks)):
            evaluation = COCOeval(truth, truth.loadRes(results), kind)
            evaluation.params.catIds = [category[name] for name in classes]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            for name, value in zip(AP_NAMES, evaluation.stats, strict=False):
                scores[f"coco/{kind}_{name}"] = float(value)
    return scores


def seg_scores(
    predictions: Sequence[dict], label_folder: Path, num_classes: int
) -> dict[str, float]:
    """``aAcc``, ``mIoU`` and ``mAcc`` in percent, of label maps with 0 and 255 not labelled.

    A class counts in the mean IoU when it is labelled or predicted anywhere, and in the mean
    accuracy when it is labelled anywhere.

    Args:
        predictions: one dict an image: `img_path`, and `pred_sem_seg` with classes from 0.
        label_folder: single-channel PNG files, classes from 1.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)  # [labelled, predicted]
    for image in predictions:
        predicted = image["pred_sem_seg"]["data"].numpy()[0]
        path = Path(label_folder) / f"{Path(image['img_path']).stem}.png"
        label = np.asarray(Image.open(path)).astype(np.int64)
        assert predicted.shape == label.shape  # scored at the size of the original image
        known = (label != 0) & (label != 255)
        np.add.at(confusion, (label[known] - 1, predicted[known].astype(np.int64)), 1)
    right = np.diag(confusion)
    labelled, predicted = confusion.sum(1), confusion.sum(0)
    union = labelled + predicted - right
    return {
        "aAcc": 100 * right.sum() / confusion.sum(),
        "mIoU": 100 * np.mean([i / u for i, u in zip(right, union, strict=True) if u]),
        "mAcc": 100 * np.mean([i / n for i, n in zip(right, labelled, strict=True) if n]),
    }


def class_scores(predictions: Sequence[dict], topk: Sequence[int]) -> dict[str, float]:
    """``accuracy/top{k}`` in percent; the true class is the folder that an image lies in.

    Args:
        predictions: one dict an image: `img_path` and `pred_score` `[classes]`, the classes in
            alphabetical order.
    """
    folders = [Path(image["img_path"]).parent for image in predictions]
    names = sorted(path.name for path in folders[0].parent.iterdir() if path.is_dir())
    ranks = []
    for image, folder in zip(predictions, folders, strict=True):
        scores = image["pred_score"].tolist()
        ranks.append(sum(score > scores[names.index(folder.name)] for score in scores))
    return {f"accuracy/top{k}": 100 * float(np.mean([r < k for r in ranks])) for k in topk}


def compare(
    kind: str, dump: Path, report: Path, truth: Path | None, classes: Sequence[str] | None
) -> tuple[list[dict], bool]:
    """A row for each score, reported and by hand, and whether all agree.

    Args:
        kind: of `DIGITS`.
        dump: from `tools/test.py --out`.
        report: JSON file that the same run wrote.
        classes: coco: in label order; None: that of the annotation file.
    """
    predictions = pickle.loads(dump.read_bytes())
    reported = json.loads(report.read_text())
    if kind == "coco":
        if classes is None:
            classes = [one["name"] for one in json.loads(truth.read_text())["categories"]]
        scores = coco_scores(predictions, truth, classes)
    elif kind == "ade20k":
        scores = seg_scores(predictions, truth, 255)
    else:
        ranks = [int(name[12:]) for name in reported if name.startswith("accuracy/top")]
        scores = class_scores(predictions, ranks)
    rows = [dict(score=name, reported=reported[name], by_hand=x) for name, x in scores.items()]
    close = 0.5001 * 10 ** -DIGITS[kind]
    return rows, all(abs(row["reported"] - row["by_hand"]) <= close for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=DIGITS, help="format of the data set")
    parser.add_argument("dump", type=Path, help="what tools/test.py --out wrote")
    parser.add_argument("report", type=Path, help="the scores as JSON that the same run wrote")
    parser.add_argument("truth", type=Path, nargs="?", help="see above")
    parser.add_argument(
        "--classes", nargs="+", help="coco: names in label order, if not the file's"
    )
    args = parser.parse_args()
    if (args.truth is None) != (args.kind == "imagenet"):
        parser.error("TRUTH belongs to coco and ade20k, and to these only")
    rows, agree = compare(args.kind, args.dump, args.report, args.truth, args.classes)
    for row in rows:
        print(f"{row['score']:20} reported {row['reported']:9g}  by hand {row['by_hand']:11.6f}")
    if not agree:
        sys.exit(f"{args.dump}: what was reported is not what the predictions give")


if __name__ == "__main__":
    main()
