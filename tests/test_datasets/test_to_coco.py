"""YOLO and Pascal VOC become COCO, and what has no place there is named."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import yaml
from PIL import Image
from tiny_data import encoded, exif, write

from vig_mm.checks.data.coco_file import read_coco
from vig_mm.datasets.to_coco import FORMATS, OTHERS, convert
from vig_mm.errors import FormatError

ROOT = Path(__file__).resolve().parents[2]
SIZE = (40, 20)
NAMES = ["a class, ünusual", "b"]
BOX = "1 .5 .5 .5 .5"
LABELS = {"1.png": f"0 .1 .1 .5 .1 .3 .9\n{BOX}", "2.png": None, "3 3.png": BOX}


def photo(path, orientation=1):
    write(path, encoded(Image.new("RGB", SIZE), path.suffix[1:].upper().replace("JPG", "JPEG"),
                        exif=exif(orientation)))  # fmt: skip


def yolo(root, labels, **more):
    """`data.yaml` of `train/images`; `labels`: text by the image's name, None for no file."""
    for name, text in labels.items():
        photo(root / "train/images" / name)
        if text is not None:
            write((root / "train/labels" / name).with_suffix(".txt"), text)
    content = dict(names=NAMES, train="../train/images") | more
    return write(root / "data.yaml", yaml.safe_dump(content, allow_unicode=True))


def voc(path, objects, filename="1.png", size=SIZE, encoding="utf-8"):
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotation><filename>{filename}'
    return write(path, f"{head}</filename>{sides}{objects}</annotation>".encode(encoding))


def thing(name, box, more=""):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox>{more}</object>"


ONE = thing("a", (11, 6, 31, 16))


def refused(words, kind, *args, **options):
    with pytest.raises(FormatError, match=words) as error:
        convert(kind, *args, **options)
    return str(error.value)


def write_voc(root):
    """VOC has no polygons, and counts from 1."""
    second = thing("b", (11, 6, 31, 16))
    objects = {"1.png": thing(NAMES[0], (5, 3, 21, 19)) + second, "2.png": "", "3 3.png": second}
    for name, text in objects.items():
        photo(root / "JPEGImages" / name)
        voc(root / "Annotations" / name.replace(".png", ".xml"), text, name)
    return root / "Annotations"


WRITERS = {"yolo": lambda root: yolo(root, LABELS, nc=2), "voc": write_voc}


@pytest.mark.parametrize("kind", FORMATS)
def test_same_objects(kind, tmp_path):
    content, _ = convert(kind, WRITERS[kind](tmp_path / "my data"))
    assert content["categories"] == [dict(id=i, name=name) for i, name in enumerate(NAMES, 1)]
    images = {one.pop("id"): one for one in content["images"]}
    named = [dict(file_name=name, width=40, height=20) for name in sorted(LABELS)]
    assert sorted(images.values(), key=str) == named
    shape = dict(bbox=pytest.approx([4, 2, 16, 16]), area=256)
    if kind == "yolo":
        shape |= dict(area=pytest.approx(128), segmentation=[pytest.approx([4, 2, 20, 2, 12, 18])])
    box = dict(bbox=pytest.approx([10, 5, 20, 10]), area=pytest.approx(200))
    for number, one in enumerate(content["annotations"], 1):
        name = images[one.pop("image_id")]["file_name"]
        assert name == ("3 3.png" if number == 3 else "1.png")
        what = dict(id=number, category_id=1 + (number > 1), iscrowd=0)
        assert one == what | (shape if number == 1 else box)


OTHER_FILES = {
    "labelme": ("1.json", json.dumps(dict(shapes=[], imagePath="1.png"))),
    "via": ("via.json", json.dumps({"1.png9": dict(filename="1.png", regions=[])})),
    "cvat": ("a.xml", "<?xml version='1.0'?>\n<annotations></annotations>"),
}


@pytest.mark.parametrize("kind", [*FORMATS, *OTHERS])
def test_named_where_coco_is_expected(kind, tmp_path):
    """Given for a COCO file, each is told by its name, with the way to COCO."""
    if kind in FORMATS:
        said = read_coco(str(WRITERS[kind](tmp_path)))
        assert f"python tools/data/convert.py --from {kind} " in said
        return
    source = write(tmp_path / OTHER_FILES[kind][0], OTHER_FILES[kind][1])
    assert OTHERS[kind] in read_coco(str(source))
    if kind == "labelme":
        assert OTHERS[kind] in read_coco(str(tmp_path))
    assert OTHERS[kind] in refused(f"{kind} is not read here; .*writes", kind, source)


def test_command(tmp_path):
    source = WRITERS["yolo"](tmp_path)
    command = [sys.executable, ROOT / "tools/data/convert.py", "--from", "yolo", source]
    target = tmp_path / "out/train.json"
    done = subprocess.run([*command, target], capture_output=True, text=True)
    assert "3 images, 2 categories, 3 annotations\n" in done.stdout, done.stderr
    assert f"file_name is relative to '{tmp_path}/train/images'" in done.stdout
    assert "1 images have no file of labels" in done.stdout and "2.png" in done.stdout
    assert isinstance(read_coco(str(target)), dict)
    target.unlink()
    done = subprocess.run([*command, target, "--split", "val"], capture_output=True, text=True)
    assert done.returncode == 1 and "no data.yaml of YOLO with names and val" in done.stderr
    assert not target.exists()


# labels of one image or by image, changes of data.yaml, words of the error, further files (None: a
# folder)
GOOD = "0 .5 .5 .2 .4"
POSE = "0 0.5 0.5 0.4 0.4 " + " ".join(["0.4 0.45", "0.5 0.55", "0.6 0.6"])
TURNED = "0 0.5 0.1 0.75 0.6 0.5 1.0 0.3 0.6"
UNFIT_YOLO = {
    "keypoints that are said": (GOOD, dict(kpt_shape=[4, 3]), "keypoints.*kpt_shape"),
    "oriented boxes that are said": (GOOD, dict(task="obb"), "oriented boxes"),
    "keypoints with visibility": ("0 .5 .5 .4 .4 .4 .4 2 .5 .5 2", {}, "keypoints"),
    "keypoints without": (f"{POSE}\n{POSE}", {}, "looks like a box and keypoints.*mmpose"),
    "oriented boxes": ("0 .3 .2 .5 .6 .3 1 .1 .6", {}, r"oriented \(rotated\) box.*--as-polygons"),
    "scores": ("0 .5 .5 .2 .4 .9", {}, "has 5 numbers .*a fifth may be a score"),
    "pixels": ("0 20 10 5 5", {}, "shares of the picture's width and height"),
    "too few": ("0 1 .2 .3", {}, "line 1 of '.*1.txt' has 3 numbers behind the class"),
    "no number": ("0 .5 .5 .2 x", {}, "line 1 of '.*1.txt'.* is no object"),
    "class of no name": ("7 0 0 1 1", {}, "no object of 2 classes"),
    "half a class": ("0.5 .5 .5 .2 .4", {}, "no object of 2 classes"),
    "no object": ("", {}, "no object in 1 images: their labels are expected"),
    "other count": (GOOD, dict(nc=3), "nc is 3, and names are 2"),
    "not there": (GOOD, dict(train="val.txt"), "give the folder by --images"),
    "twice": ({"1.png": GOOD, "1.jpg": GOOD}, {}, "share labels, more than once: .*1.txt"),
    "alone": (GOOD, {}, "labels without an image .*2.txt'$",
              {"train/labels/2.txt": GOOD, "train/labels/classes.txt": "cat"}),
    "none": ({}, {}, "no image in", {"train/images": None}),
    "broken": (GOOD, {}, "'.*1.png' cannot be read", {"train/images/1.png": "text"}),
    "class twice": (GOOD, dict(names=["a", "a"]), "classes of one name"),
    "no class": (GOOD, dict(names=None), "no data.yaml of YOLO"),
    "gone": ({}, dict(train="list.txt"), "lists images that are not there: 's1/images/7.jpg'",
             {"list.txt": "s1/images/7.jpg"}),
    "listed twice": (GOOD, dict(train="list.txt"), "images are there more than once",
                     {"list.txt": "train/images/1.png\n./train/images/1.png"}),
    "empty list": ({}, dict(train="list.txt"), "no image in", {"list.txt": ""}),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT_YOLO)
def test_yolo_that_is_not_converted(what, tmp_path):
    labels, changes, words, *files = UNFIT_YOLO[what]
    source = yolo(tmp_path, labels if isinstance(labels, dict) else {"1.png": labels}, **changes)
    for name, content in dict(*files).items():
        path = tmp_path / name
        path.mkdir(parents=True) if content is None else write(path, content)
    refused(words, "yolo", source)


def test_corners_as_polygons(tmp_path):
    source = yolo(tmp_path, {"1.png": UNFIT_YOLO["oriented boxes"][0]})
    (one,) = convert("yolo", source, as_polygons=True)[0]["annotations"]
    assert one["segmentation"] == [pytest.approx([12, 4, 20, 12, 12, 20, 4, 12])]
    # four corners of no rectangle are a polygon, and upright ones are what their box is
    for line in ("0 .1 .1 .9 .2 .6 .9 .2 .8", "0 .1 .1 .5 .1 .5 .9 .1 .9"):
        convert("yolo", yolo(tmp_path, {"1.png": line}))


def test_lists_and_several_folders(tmp_path):
    for split in ("s1", "s2"):
        photo(tmp_path / split / "images/1.jpg")
        write(tmp_path / split / "labels/1.txt", GOOD)
    write(tmp_path / "list.txt", "./s1/images/1.jpg\n\ns2\\images\\1.jpg\n")
    for entry in ("list.txt", ["s1/images", "s2/images"]):
        content = dict(path=".", names={0: "a"}, train=entry)
        found, notes = convert("yolo", write(tmp_path / "data.yaml", yaml.safe_dump(content)))
        names = [one["file_name"] for one in found["images"]]
        assert names == ["s1/images/1.jpg", "s2/images/1.jpg"]
        assert f"relative to '{tmp_path}'" in notes[0]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_pictures_that_exif_turns(orientation, suffix, tmp_path):
    """Their size is that of the loader."""
    source = yolo(tmp_path, {f"1{suffix}": "0 .5 .5 .5 .5"})
    path = tmp_path / f"train/images/1{suffix}"
    photo(path, orientation)
    (one,) = convert("yolo", source)[0]["images"]
    assert (one["height"], one["width"]) == cv2.imread(str(path)).shape[:2]


# Pascal VOC --------------------------------------------------------------------------------------

UNFIT_VOC = {
    "rotated": (thing("a", (1, 1, 9, 9), "<robndbox><cx>5</cx></robndbox>"), "<robndbox>: rotated"),
    "polygon": (thing("a", (1, 1, 9, 9), "<polygon><x1>5</x1></polygon>"), "<polygon>"),
    "angle": (ONE.replace("</bndbox>", "<angle>3</angle></bndbox>"), "<angle>"),
    "attributes": (
        thing("a", (1, 1, 9, 9), "<attributes><attribute><name>rotation</name><value>9</value>"
              "</attribute></attributes>"), "<attributes>",
    ),
    "unknown key": (thing("a", (1, 1, 9, 9), "<track_id>5</track_id>"), "<track_id>"),
    "no box": ("<object><name>a</name></object>", "no bndbox of four numbers"),
    "no name": (thing("", (1, 1, 9, 9)), "has no name"),
    "corners the other way": (thing("a", (9, 9, 1, 1)), "corners in another order"),
    "no object": ("", "no object in 1 xml files"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNFIT_VOC)
def test_voc_that_is_not_converted(what, tmp_path):
    photo(tmp_path / "1.png")
    voc(tmp_path / "1.xml", UNFIT_VOC[what][0])
    refused(UNFIT_VOC[what][1], "voc", tmp_path)


def test_what_voc_says_besides(tmp_path):
    photo(tmp_path / "1.png")
    empty = "<attribute><name>rotation</name><value>0.0</value></attribute>"
    part = thing("head", (12, 7, 14, 9)).replace("object>", "part>")
    kept = f"<pose>Left</pose><truncated>1</truncated><difficult>1</difficult>{part}"
    kept += f"<attributes>{empty}</attributes>"
    voc(tmp_path / "1.xml", thing("a", (11, 6, 31, 16), kept))
    content, notes = convert("voc", tmp_path)
    (one,) = content["annotations"]
    assert one["iscrowd"] == 1 and one["bbox"] == [10, 5, 20, 10]
    assert one["attributes"]["truncated"] == "1" and one["attributes"]["pose"] == "Left"
    assert one["attributes"]["part"][0]["name"] == "head"
    assert any("1 objects are difficult" in note for note in notes)
    assert any("part, pose, truncated" in note for note in notes)


@pytest.mark.parametrize("said, there, note", [
    ("1", "1.JPG", ""), ("old name.png", "1.png", "1.png for old name.png"),
    ("sub\\1.png", "sub/1.png", ""), ("1.png", "../JPEGImages/1.png", ""),
])  # fmt: skip
def test_names_of_voc(said, there, note, tmp_path):
    photo(tmp_path / "Annotations" / there)
    voc(tmp_path / "Annotations/1.xml", ONE, said)
    content, notes = convert("voc", tmp_path / "Annotations")
    assert content["images"][0]["file_name"] == there.removeprefix("../JPEGImages/")
    assert note in str(notes)


@pytest.mark.parametrize("encoding", ["utf-8", "gb2312", "shift_jis", "utf-16", "latin-1"])
def test_encodings_of_voc(encoding, tmp_path):
    photo(tmp_path / "1.png")
    name = "ü" if encoding == "latin-1" else "人"
    voc(tmp_path / "1.xml", thing(name, (1, 1, 9, 9)), encoding=encoding)
    assert convert("voc", tmp_path)[0]["categories"][0]["name"] == name
    for text in ("", "<a", "<?xml version='1.0' encoding='nothing'?><annotation/>", "<a/>"):
        write(tmp_path / "1.xml", text)
        refused("1.xml' (cannot be read as xml|begins with <a>)", "voc", tmp_path)


def test_images_of_voc(tmp_path):
    voc(tmp_path / "a/1.xml", ONE)
    for images in (None, tmp_path):
        refused("no image in .* for '.*1.xml': give their folder", "voc", tmp_path / "a", images)
    voc(tmp_path / "a/2.xml", ONE)
    photo(tmp_path / "a/1.png")
    refused("images have an xml more than once", "voc", tmp_path / "a")
    photo(tmp_path / "b/1.png")
    voc(tmp_path / "b/1.xml", ONE, size=(20, 20))
    refused("of 20x20 pixels, and '.*' is loaded as 40x20", "voc", tmp_path / "b")
    voc(tmp_path / "b/1.xml", thing("a", (0, 0, 9, 9)), size=None)
    content, notes = convert("voc", tmp_path / "b")
    assert content["annotations"][0]["bbox"] == [0, 0, 9, 9] and "count from 0" in str(notes)


@pytest.mark.parametrize("box, error", [((11, 6, 16, 36), None), ((11, 6, 36, 16), "unturned")])
def test_voc_that_exif_turns(box, error, tmp_path):
    """Written in the size of the file; the boxes tell whether they are of the turned picture."""
    photo(tmp_path / "1.jpg", 6)
    voc(tmp_path / "1.xml", thing("a", box), "1.jpg")
    if error:
        refused(error, "voc", tmp_path)
        return
    content, notes = convert("voc", tmp_path)
    assert (content["images"][0]["width"], content["images"][0]["height"]) == SIZE[::-1]
    assert "1.jpg (20x40)" in str(notes)


def test_classes_that_are_given(tmp_path):
    source = write_voc(tmp_path)
    content, _ = convert("voc", source, classes=NAMES[::-1])
    assert [one["name"] for one in content["categories"]] == NAMES[::-1]
    refused("objects of 'b', which are no classes", "voc", source, classes=[NAMES[0]])
    refused("is not there", "voc", tmp_path / "nowhere")
