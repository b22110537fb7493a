"""The one row every data set is read into, and what its features say about the classes.

    image       datasets.Image, a reference (path or encoded bytes) until it is looked at
    image_id    int64, unique within a split
    width       int32, pixels, of the upright image (EXIF orientation applied)
    height      int32
    objects     a dict of equally long lists, as Hub data sets such as cppe-5 have it
        id        int64, of the annotation
        bbox      4 x float32, xywh in pixels: left, top, width, height (COCO's)
        category  ClassLabel: contiguous from 0, in the order of the original ids
        area      float32, square pixels: the mask's where the source has one, else the box's
        iscrowd   int8, 0 or 1
        segmentation  a reference to the mask (`masks.ENTRY_FIELDS`), None without; only where the source has masks
        is_thing      bool, False for stuff; only in panoptic data, where every segment of an image is an object

The source's own category ids (COCO's 1..90 with gaps) are kept in the ClassLabel's `id` text, "1,2,3,5": of all the
places a `datasets` object offers, features alone survive `map`, `concatenate_datasets`, `save_to_disk`, Parquet, the
Hub's dataset card and streaming. No text means that original and contiguous ids are the same.
"""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Features, Image, List, Value

OBJECT_COLUMNS = ("id", "bbox", "category", "area", "iscrowd")
MASK_FEATURE = {
    "polygons": List(List(Value("float64"))),
    "size": List(Value("int32")),
    "counts": Value("string"),
    "file": Value("string"),
    "id": Value("int64"),
}
ROW_COLUMNS = ("image", "image_id", "width", "height", "objects")


def detection_features(
    class_names: Sequence[str],
    original_ids: Sequence[int] | None = None,
    masks: bool = False,
    panoptic: bool = False,
) -> Features:
    """The features of the schema above for these classes.

    `class_names` in the order of the contiguous ids; `original_ids`, as many, where the source numbers them otherwise.
    `masks` adds objects.segmentation, `panoptic` objects.is_thing.
    Raises ValueError for duplicate names or ids and for numbers of names and ids that differ.
    """
    names = [str(name) for name in class_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class names must be unique, got {twice} more than once; rename or merge them in the source.")
    label_id = None
    if original_ids is not None and list(original_ids) != list(range(len(names))):
        if len(original_ids) != len(names) or len(set(original_ids)) != len(names):
            raise ValueError(
                f"original_ids must be {len(names)} different numbers, one for each class name, got "
                f"{list(original_ids)}; give one id per name in the same order."
            )
        label_id = ",".join(str(int(one)) for one in original_ids)
    objects: dict[str, Any] = {
        "id": List(Value("int64")),
        "bbox": List(List(Value("float32"), length=4)),
        "category": List(ClassLabel(names=names, id=label_id)),
        "area": List(Value("float32")),
        "iscrowd": List(Value("int8")),
    }
    if masks:
        objects["segmentation"] = List(dict(MASK_FEATURE))
    if panoptic:
        objects["is_thing"] = List(Value("bool"))
    size = {name: Value("int32") for name in ("width", "height")}
    return Features({"image": Image(), "image_id": Value("int64"), **size, "objects": objects})


def class_names(dataset: Any) -> list[str]:
    """Names of the classes, in the order of their ids, of a data set (or a dict of splits) in the schema.

    Raises ValueError where there is no `objects.category` ClassLabel, or where the splits of a dict disagree.
    """
    return list(_class_label(dataset).names)


def id2label(dataset: Any) -> dict[int, str]:
    """Contiguous class id -> name, as `DetrConfig(id2label=...)` takes it."""
    return dict(enumerate(class_names(dataset)))


def original_category_ids(dataset: Any) -> list[int]:
    """The source's category id of each class, in the order of the contiguous ids: what COCO result files must carry."""
    label = _class_label(dataset)
    return [int(one) for one in label.id.split(",")] if label.id else list(range(len(label.names)))


def is_detection_dataset(dataset: Any) -> bool:
    """Whether the features of one split are exactly the schema's, with or without masks."""
    if getattr(dataset, "features", None) is None:
        return False
    try:
        label = _class_label(dataset)
    except ValueError:
        return False
    objects = _object_fields(dataset)
    wanted = detection_features(label.names, masks="segmentation" in objects, panoptic="is_thing" in objects)
    wanted["objects"]["category"] = List(label)
    features = Features(dataset.features)
    if isinstance(features.get("image"), Image):
        features["image"] = Image()  # decoding switched off is still an image
    return features == wanted


def has_masks(dataset: Any) -> bool:
    """Whether the features of a data set (or of one of a dict of splits) have objects.segmentation."""
    return any("segmentation" in (_object_fields(one) or ()) for one in _splits_of(dataset))


def is_panoptic(dataset: Any) -> bool | None:
    """Whether objects say if they are things or stuff (objects.is_thing); None where the columns are not known."""
    fields = [_object_fields(one) for one in _splits_of(dataset)]
    return None if None in fields else any("is_thing" in one for one in fields)


def stuff_ids(dataset: Any) -> list[int]:
    """The class ids of stuff, ascending: those of objects that are no things. Reads the objects of all splits."""
    found: set[int] = set()
    for one in _splits_of(dataset):
        if "is_thing" not in (_object_fields(one) or ()):
            continue
        for row in one.select_columns(["objects"]):
            pairs = zip(row["objects"]["category"], row["objects"]["is_thing"], strict=True)
            found |= {category for category, is_thing in pairs if not is_thing}
    return sorted(found)


def _splits_of(dataset: Any) -> list[Any]:
    return list(dataset.values()) if isinstance(dataset, dict) else [dataset]


def _object_fields(dataset: Any) -> Any:
    objects = (getattr(dataset, "features", None) or {}).get("objects")
    return getattr(objects, "feature", objects)  # a list of dicts; or already a dict of lists


def _class_label(dataset: Any) -> ClassLabel:
    if isinstance(dataset, dict):
        labels = {split: _class_label(one) for split, one in dataset.items()}
        if not labels:
            raise ValueError("expected at least one split, got an empty dict of data sets; load one first.")
        (first, label), *others = labels.items()
        for split, other in others:
            if other != label:
                raise ValueError(
                    f"splits {first!r} and {split!r} disagree on the classes: {label.names} (ids {label.id}) and "
                    f"{other.names} (ids {other.id}); load both with one call of load_detection_dataset."
                )
        return label
    features = getattr(dataset, "features", None)
    objects = _object_fields(dataset)
    category = objects.get("category") if isinstance(objects, dict) else None
    label = getattr(category, "feature", category)
    if not isinstance(label, ClassLabel):
        raise ValueError(
            f"expected a data set with objects.category as ClassLabel, got features {features}; "
            "pass it through load_detection_dataset(dataset) (class_names=[...] where it holds bare numbers)."
        )
    return label
