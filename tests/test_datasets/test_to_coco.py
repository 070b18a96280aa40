"""Other formats become COCO: the same pictures and objects, written by hand in each of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vig_mm.checks.data.coco_file import read_coco
from vig_mm.datasets.to_coco import FormatError, convert

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 20)
POLYGON = [4.0, 2.0, 20.0, 2.0, 12.0, 18.0]  # area 128
BOX = [10.0, 5.0, 30.0, 15.0]  # x1, y1, x2, y2
NAMES = ["a class, ünusual", "b"]
# name of the image -> (class, polygon or box)
TRUTH = {"1.png": [(0, POLYGON), (1, BOX)], "2.png": [], "3 3.png": [(1, BOX)]}


def pairs(polygon):
    return [polygon[i : i + 2] for i in range(0, len(polygon), 2)]


def images(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in TRUTH:
        Image.new("RGB", SIZE).save(folder / name)


def write_yolo(root):
    images(root / "train/images")
    (root / "train/labels").mkdir()
    for name, things in TRUTH.items():
        lines = []
        for label, shape in things:
            if len(shape) == 4:
                x1, y1, x2, y2 = shape
                shape = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            values = [value / SIZE[i % 2] for i, value in enumerate(shape)]
            lines.append(" ".join(map(str, [label, *values])))
        if things:  # an image without objects may have no file
            (root / "train/labels" / name.replace(".png", ".txt")).write_text("\n".join(lines))
    content = dict(names=NAMES, nc=2, train="../train/images")
    (root / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
    return root / "data.yaml"


def write_voc(root):
    (root / "Annotations").mkdir(parents=True)
    for name, things in TRUTH.items():
        objects = ""
        for label, shape in things:
            if len(shape) > 4:  # VOC has no polygons
                shape = [min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2])]
            tags = ("xmin", "ymin", "xmax", "ymax")
            corners = "".join(f"<{t}>{v + 1}</{t}>" for t, v in zip(tags, shape, strict=True))
            objects += f"<object><name>{NAMES[label]}</name><bndbox>{corners}</bndbox></object>"
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        text = f"<annotation><filename>{name}</filename>{size}{objects}</annotation>"
        (root / "Annotations" / name.replace(".png", ".xml")).write_text(text, encoding="utf-8")
    return root / "Annotations"


def write_labelme(root):
    root.mkdir(parents=True, exist_ok=True)
    for name, things in TRUTH.items():
        shapes = [
            dict(
                label=NAMES[label],
                shape_type="rectangle" if len(shape) == 4 else "polygon",
                points=pairs(shape),
                group_id=None,
            )
            for label, shape in things
        ]
        shapes.append(dict(label="x", shape_type="point", points=[[1, 1]]))
        content = dict(shapes=shapes, imagePath=f"..\\{name}", imageWidth=40, imageHeight=20)
        (root / name.replace(".png", ".json")).write_text(json.dumps(content))
    return root


def write_via(root):
    images(root)
    entries = {}
    for name, things in TRUTH.items():
        regions = []
        for label, shape in things:
            if len(shape) == 4:
                x1, y1, x2, y2 = shape
                attributes = dict(name="rect", x=x1, y=y1, width=x2 - x1, height=y2 - y1)
            else:
                attributes = dict(name="polygon", all_points_x=shape[::2], all_points_y=shape[1::2])
            value = NAMES[label] if label else {NAMES[0]: True, NAMES[1]: False}
            regions.append(dict(shape_attributes=attributes, region_attributes={"kind": value}))
        entries[f"{name}99"] = dict(filename=name, size=99, regions=regions)
    (root / "via.json").write_text(json.dumps({"_via_img_metadata": entries}))
    return root / "via.json"


def write_cvat(root):
    root.mkdir(parents=True, exist_ok=True)
    text = "<meta><task><labels>"
    text += "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    text += "</labels></task></meta>"
    for i, (name, things) in enumerate(TRUTH.items()):
        text += f'<image id="{i}" name="{name}" width="40" height="20">'
        for label, shape in things:
            if len(shape) == 4:
                tags = zip(("xtl", "ytl", "xbr", "ybr"), shape, strict=True)
                corners = " ".join(f'{tag}="{value}"' for tag, value in tags)
                text += f'<box label="{NAMES[label]}" {corners}/>'
            else:
                points = ";".join(f"{x},{y}" for x, y in pairs(shape))
                text += f'<polygon label="{NAMES[label]}" points="{points}"/>'
        text += "</image>"
    path = root / "annotations.xml"
    path.write_text(f"<?xml version='1.0'?>\n<annotations>{text}</annotations>", encoding="utf-8")
    return path


WRITERS = {
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "via": write_via,
    "cvat": write_cvat,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_same_objects(kind, tmp_path):
    source = WRITERS[kind](tmp_path / "my data")
    content, skipped = convert(kind, source)
    assert skipped == (3 if kind == "labelme" else 0)
    assert [one["name"] for one in content["categories"]] == NAMES
    pictures = {one["id"]: one for one in content["images"]}
    assert sorted(one["file_name"] for one in pictures.values()) == sorted(TRUTH)
    assert all((one["width"], one["height"]) == SIZE for one in pictures.values())
    got = {name: [] for name in TRUTH}
    for one in content["annotations"]:
        got[pictures[one["image_id"]]["file_name"]].append(one)
    for name, things in TRUTH.items():
        assert len(got[name]) == len(things)
        for one, (label, shape) in zip(got[name], things, strict=True):
            assert one["category_id"] == label + 1 and one["iscrowd"] == 0
            if len(shape) == 4:
                assert one["bbox"] == pytest.approx([10, 5, 20, 10])
                assert one["area"] == pytest.approx(200) and "segmentation" not in one
                continue
            assert one["bbox"] == pytest.approx([4, 2, 16, 16])
            if kind != "voc":
                assert one["segmentation"] == [pytest.approx(POLYGON)]
                assert one["area"] == pytest.approx(128)
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3]


@pytest.mark.parametrize("kind", WRITERS)
def test_named_where_coco_is_expected(kind, tmp_path):
    """Given for a COCO file, each is told by its name, with the command that converts it."""
    source = WRITERS[kind](tmp_path / "data")
    said = read_coco(str(source))
    assert f"python tools/data/convert.py --from {kind} " in said
    if kind in ("voc", "labelme"):  # one of its files, too
        assert f"--from {kind} {source}" in read_coco(str(next(iter(sorted(source.glob("*"))))))


def test_command(tmp_path):
    source = write_yolo(tmp_path)
    (tmp_path / "val").mkdir()
    command = [sys.executable, ROOT / "tools/data/convert.py", "--from", "yolo", source]
    target = tmp_path / "out/train.json"
    done = subprocess.run([*command, target], capture_output=True, text=True)
    assert done.stdout.endswith("3 images, 2 categories, 3 annotations\n"), done.stderr
    assert isinstance(read_coco(str(target)), dict)
    done = subprocess.run([*command, target, "--split", "val"], capture_output=True, text=True)
    assert done.returncode == 1 and "no data.yaml of YOLO with names and val" in done.stderr


def test_parts_of_one_object(tmp_path):
    """Shapes of one group and label in LabelMe; a crowd in VOC."""
    shapes = [dict(label="a", points=pairs(POLYGON), group_id=1) for _ in range(2)]
    shapes.append(dict(label="b", points=pairs(POLYGON), group_id=1))
    content = dict(shapes=shapes, imagePath="1.png", imageWidth=40, imageHeight=20)
    (tmp_path / "1.json").write_text(json.dumps(content))
    one, other = convert("labelme", tmp_path)[0]["annotations"]
    assert one["segmentation"] == [POLYGON, POLYGON] and other["segmentation"] == [POLYGON]

    folder = write_voc(tmp_path / "voc")
    path = folder / "3 3.xml"
    path.write_text(path.read_text().replace("</object>", "<difficult>1</difficult></object>"))
    crowds = [one["iscrowd"] for one in convert("voc", folder)[0]["annotations"]]
    assert crowds == [0, 0, 1]


def test_what_cannot_be_read_is_named(tmp_path):
    source = write_yolo(tmp_path / "yolo")
    labels = tmp_path / "yolo/train/labels/1.txt"
    for line, words in (("0 1 2 3", "has 3 numbers behind the class"), ("7 0 0 1 1", "no object")):
        labels.write_text(line)
        with pytest.raises(FormatError, match=f"line 1 of '.*1.txt'.*{words}"):
            convert("yolo", source)
    with pytest.raises(FormatError, match="begins with <annotation>"):
        convert("cvat", write_voc(tmp_path / "voc") / "1.xml")
    with pytest.raises(FormatError, match="is not there"):
        convert("via", tmp_path / "nowhere.json")
    with pytest.raises(FormatError, match="objects of 'b', which are no classes"):
        convert("cvat", write_cvat(tmp_path / "cvat"), classes=[NAMES[0]])
