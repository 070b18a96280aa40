"""Scores worked out apart from the libraries' evaluators, from what tools/test.py dumps.

Only pycocotools is trusted (`tests/test_real_data.py` holds it against published scores); it is
called with its own defaults. Names and files say which class a label means, not the config.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

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
        truth = COCO(str(ann_file))
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
