"""Images and annotations -> tensors: what the processor promises, and what it says to bad input."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor as StockProcessor

from hf_detr.image_processing_detr import DetrImageProcessor

HUB_SAMPLES = Path(__file__).resolve().parents[2] / "../shared/hub_samples"
SMALL = {"size": {"shortest_edge": 32, "longest_edge": 64}}


def random_image(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def annotation(*bboxes, image_id=7, **more):
    return {"image_id": image_id, "annotations": [{"bbox": list(b), "category_id": 1, **more} for b in bboxes]}


def one_object(**fields):
    return {"image_id": 3, "annotations": [fields]}


@pytest.fixture
def processor():
    return DetrImageProcessor(**SMALL)


# --- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [True, False])
def test_padding_never_moves_a_label(processor, convert):
    images = [random_image(40, 60), random_image(90, 33), random_image(20, 160)]
    annotations = [annotation([3, 4, 20, 30], [0, 0, 60, 40]), annotation([1, 50, 30, 40]), annotation([80, 5, 70, 9])]
    together = processor(images, annotations, return_tensors="pt", do_convert_annotations=convert)["labels"]
    for image, own, beside in zip(images, annotations, together, strict=True):
        for padding in ({}, {"pad_size": 200}):
            alone = processor(image, own, return_tensors="pt", do_convert_annotations=convert, **padding)["labels"][0]
            assert alone.keys() == beside.keys()
            assert all(torch.equal(alone[name], beside[name]) for name in alone)


def test_boxes_are_fractions_of_the_visible_image(processor):
    label = processor(
        [random_image(40, 80), random_image(80, 40)],
        [annotation([20, 10, 40, 20]), annotation([10, 20, 20, 40])],
        return_tensors="pt",
    )["labels"][0]
    assert label["boxes"].tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert label["size"].tolist() == [32, 64]
    assert label["orig_size"].tolist() == [40, 80]
    assert label["area"].tolist() == pytest.approx([40 * 20 * (32 / 40) * (64 / 80)])


def test_padding_is_zero_and_the_mask_says_where(processor):
    encoded = processor([random_image(32, 48), random_image(48, 32)], return_tensors="pt")
    values, mask = encoded["pixel_values"], encoded["pixel_mask"]
    assert values.shape == (2, 3, 48, 48)
    assert values.dtype == torch.float32
    assert mask.dtype == torch.int64
    assert mask[0].sum() == mask[1].sum() == 32 * 48
    assert (mask[0, :32, :48] == 1).all()
    assert (mask[1, :48, :32] == 1).all()
    assert (values[mask[:, None].expand_as(values) == 0] == 0).all()


def test_fixed_padding_and_its_limit(processor):
    assert processor(random_image(32, 48), pad_size=(70, 80), return_tensors="pt").pixel_values.shape[-2:] == (70, 80)
    with pytest.raises(ValueError, match=r"images\[1\] is \(32, 48\).*pad_size \(40, 40\).*max_height"):
        processor([random_image(32, 32), random_image(32, 48)], pad_size=40, return_tensors="pt")


@pytest.mark.parametrize(
    ("size", "image_hw", "expected_hw"),
    [
        ({"shortest_edge": 32, "longest_edge": 64}, (100, 50), (64, 32)),
        ({"shortest_edge": 32, "longest_edge": 64}, (300, 50), (64, 11)),
        ({"height": 20, "width": 30}, (100, 50), (20, 30)),
        ((20, 30), (100, 50), (20, 30)),
        ({"max_height": 40, "max_width": 40}, (100, 50), (40, 20)),
        (24, (48, 48), (24, 24)),
        ({"shortest_edge": 32, "longest_edge": 64}, (1, 1), (32, 32)),
        ({"shortest_edge": 32, "longest_edge": 64}, (1, 5000), (1, 64)),
    ],
)
def test_resized_shape(size, image_hw, expected_hw):
    encoded = DetrImageProcessor(size=size)(random_image(*image_hw), return_tensors="pt")
    assert encoded["pixel_values"].shape[-2:] == expected_hw


def test_without_padding_mixed_sizes_are_a_list_or_an_error(processor):
    images = [random_image(32, 48), random_image(48, 32)]
    with pytest.raises(ValueError, match=r"different sizes.*do_pad=True"):
        processor(images, do_pad=False, return_tensors="pt")
    encoded = processor(images, do_pad=False)
    assert [tuple(v.shape) for v in encoded["pixel_values"]] == [(3, 32, 48), (3, 48, 32)]
    assert "pixel_mask" not in encoded
    assert processor(images[:1] * 2, do_pad=False, return_tensors="pt").pixel_values.shape == (2, 3, 32, 48)


def test_a_large_batch_outlives_its_processor_and_can_be_shared_and_pickled():
    images = [random_image(500, 600, seed) for seed in range(3)]
    values = DetrImageProcessor(size=500)(images, return_tensors="pt")["pixel_values"]
    expected = torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    expected = (expected - mean) / std
    for again in (
        values,
        pickle.loads(pickle.dumps(values)),
        copy.deepcopy(values),
        values.share_memory_(),
        values + 0,
    ):
        assert torch.allclose(again, expected, atol=1e-5)


def test_numpy_tensors_on_request(processor):
    encoded = processor(random_image(32, 48), annotation([1, 2, 3, 4]), return_tensors="np")
    assert isinstance(encoded["pixel_values"], np.ndarray)
    assert isinstance(encoded["labels"][0]["boxes"], np.ndarray)


# --- kinds of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [True, False])
def test_colours_multiplied_by_their_alpha_are_divided_again(convert):
    processor = DetrImageProcessor(**SMALL, do_convert_rgb=convert, image_mean=[0.5], image_std=[0.5])
    for mode, straight in (("La", "LA"), ("RGBa", "RGBA")):
        image = random_image(33, 47).convert(straight)
        image.putalpha(128)
        image = image.convert(mode)
        expected = processor(image.convert(straight), return_tensors="pt").pixel_values
        assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1", "YCbCr", "HSV", "LAB"])
def test_every_pil_mode_is_seen_as_its_rgb(processor, mode):
    image = random_image(33, 47).convert("RGB").convert(mode) if mode != "PA" else random_image(33, 47).convert("P")
    if mode == "PA":
        image = image.convert("PA")
    expected = processor(image.convert("RGB"), return_tensors="pt").pixel_values
    assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)


def test_transparent_palette_and_alpha_are_dropped_without_a_warning(processor, recwarn):
    image = random_image(33, 47).convert("P")
    image.info["transparency"] = bytes(range(256))
    expected = random_image(33, 47).convert("P").convert("RGB")
    got = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(got, processor(expected, return_tensors="pt").pixel_values)
    assert not recwarn.list


def test_sixteen_bit_images_keep_their_tones(processor):
    grey = np.array(random_image(33, 47).convert("L"))
    wide = grey.astype(np.uint16) * 257
    expected = processor(grey, return_tensors="pt").pixel_values
    assert torch.equal(processor(Image.fromarray(wide), return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor(wide, return_tensors="pt").pixel_values, expected)


def test_numpy_torch_and_pil_agree_in_any_layout_and_integer_type(processor, tmp_path):
    image = random_image(33, 47)
    image.save(tmp_path / "image.png")
    hwc = np.array(image)
    chw = np.ascontiguousarray(hwc.transpose(2, 0, 1))
    frozen = hwc.copy()
    frozen.flags.writeable = False
    kinds = [
        image, hwc, chw, hwc[::-1][::-1], frozen, hwc.astype(np.int64), hwc.astype(">i4"), torch.from_numpy(chw),
        torch.from_numpy(hwc), torch.from_numpy(chw).long(), tmp_path / "image.png", str(tmp_path / "image.png"),
    ]  # fmt: skip
    expected = processor(image, return_tensors="pt").pixel_values
    mixed = processor(kinds, return_tensors="pt").pixel_values
    for i, kind in enumerate(kinds):
        assert torch.equal(mixed[i], expected[0]), i
        assert torch.equal(processor(kind, return_tensors="pt").pixel_values, expected), i
    batch = torch.from_numpy(np.stack([chw, chw]))
    assert torch.equal(processor(batch, return_tensors="pt").pixel_values, expected.repeat(2, 1, 1, 1))


def test_floats_are_rescaled_as_set_and_a_second_time_is_noticed(processor, recwarn):
    hwc = np.array(random_image(32, 48))
    expected = processor(hwc, return_tensors="pt").pixel_values
    for dtype in (np.float16, np.float32, np.float64):
        assert torch.allclose(processor(hwc.astype(dtype), return_tensors="pt").pixel_values, expected, atol=1e-5)
    fractions = hwc / 255
    got = processor(fractions, do_rescale=False, return_tensors="pt").pixel_values
    assert torch.allclose(got, expected, atol=1e-5)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="do_rescale=False"):
        processor(fractions, return_tensors="pt")


def test_array_layout_can_be_said(processor):
    image = np.zeros((3, 40, 3), dtype=np.uint8)
    assert processor(image, return_tensors="pt", do_resize=False).pixel_values.shape == (1, 3, 3, 40)
    first = processor(image, input_data_format="channels_first", return_tensors="pt", do_resize=False)
    assert first.pixel_values.shape == (1, 3, 40, 3)


def test_one_pixel_image(processor):
    image = Image.new("RGB", (1, 1), (255, 0, 0))
    encoded = processor(image, annotation([0, 0, 1, 1]), return_tensors="pt")
    assert encoded["pixel_values"].shape == (1, 3, 32, 32)
    assert encoded["pixel_values"][0, 0].unique().tolist() == pytest.approx([(1 - 0.485) / 0.229])
    assert encoded["labels"][0]["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_stand_upright_as_their_exif_says(processor, tmp_path, orientation):
    upright = random_image(32, 48)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL.Image.Transpose that a camera would have left
    stored = upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "image.png", exif=exif)
    expected = processor(upright, return_tensors="pt").pixel_values
    for image in (tmp_path / "image.png", Image.open(tmp_path / "image.png")):
        got = processor(image, annotation([0, 0, 48, 32]), return_tensors="pt")
        assert torch.equal(got.pixel_values, expected)
        assert got["labels"][0]["orig_size"].tolist() == [32, 48]
    lying = processor(tmp_path / "image.png", do_exif_transpose=False, return_tensors="pt").pixel_values
    assert torch.equal(lying, processor(stored, return_tensors="pt").pixel_values)


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_other_channels_are_left_as_they_are(channels):
    processor = DetrImageProcessor(**SMALL, do_convert_rgb=False, image_mean=[0.5] * channels, image_std=[0.5])
    image = np.random.default_rng(0).integers(0, 256, (32, 48, channels), dtype=np.uint8)
    got = processor(image, return_tensors="pt").pixel_values
    assert torch.allclose(got[0], torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)
    if channels == 1:
        assert torch.equal(processor(Image.fromarray(image[..., 0]), return_tensors="pt").pixel_values, got)


def test_channels_and_statistics_must_fit():
    processor = DetrImageProcessor(**SMALL, do_convert_rgb=False)
    with pytest.raises(ValueError, match=r"image_mean has 3 values, the images have 1 channels"):
        processor(random_image(32, 48).convert("L"), return_tensors="pt")
    with pytest.raises(ValueError, match="1 and 3 channels; set do_convert_rgb=True"):
        processor([random_image(32, 48), random_image(32, 48).convert("L")], return_tensors="pt")
    with pytest.raises(ValueError, match="6 channels cannot be made RGB"):
        DetrImageProcessor(image_mean=[0.5] * 6)(np.zeros((8, 8, 6), dtype=np.uint8))


def test_damaged_and_missing_files_are_named(processor, tmp_path):
    random_image(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "text.jpg").write_text("not an image")
    for image in (tmp_path / "cut.jpg", Image.open(tmp_path / "cut.jpg")):
        with pytest.raises(ValueError, match=r"cut\.jpg: the image is damaged.*fetch the file again"):
            processor([tmp_path / "whole.jpg", image], return_tensors="pt")
    with pytest.raises(ValueError, match=r"text\.jpg: not an image"):
        processor(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg: no such image file"):
        processor(tmp_path / "nowhere.jpg")
    with pytest.raises(ValueError, match="expected a local file"):
        processor("https://example.com/cat.jpg")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.full((8, 8, 3), np.nan), ValueError, r"images\[0\]: pixels are NaN"),
        (np.full((8, 8, 3), 300), ValueError, r"images\[0\]: .*from 300 to 300"),
        (np.zeros((8, 8, 8), dtype=np.uint8), ValueError, "pass input_data_format"),
        (np.zeros((0, 8, 3), dtype=np.uint8), ValueError, "empty"),
        (np.zeros(8, dtype=np.uint8), ValueError, "got shape"),
        (np.array(["a"]), TypeError, "dtype"),
        (None, TypeError, "got NoneType"),
        ([None], TypeError, r"images\[0\]: .*got NoneType"),
        ([[random_image(8, 8)]], TypeError, "flatten"),
        ([], ValueError, "empty list"),
    ],
)
def test_what_is_no_image_is_refused(processor, image, error, message):
    with pytest.raises(error, match=message):
        processor(image, return_tensors="pt")


# --- annotations ----------------------------------------------------------------------------------------------------


def test_crowds_are_left_out_and_overhang_is_clipped_on_request(processor):
    target = annotation([-10, 20, 40, 400])
    target["annotations"] += [{"bbox": [float("nan")] * 4, "category_id": 3, "iscrowd": 1}]
    with pytest.warns(UserWarning, match=r"Of 1 boxes 1 clipped to the image.*image_id 7\): object 0: partly outside"):
        label = processor(random_image(64, 64), target, return_tensors="pt", on_bad_box="clip")["labels"][0]
    assert label["class_labels"].tolist() == [1]
    assert label["iscrowd"].tolist() == [0]
    assert label["boxes"].tolist() == [[15 / 64, 42 / 64, 30 / 64, 44 / 64]]
    assert label["area"].tolist() == [30 * 44 / 4]


def test_an_image_without_objects_has_empty_labels(processor):
    label = processor(random_image(64, 64), annotation(), return_segmentation_masks=True)["labels"][0]
    assert label["boxes"].shape == (0, 4)
    assert label["class_labels"].dtype == torch.int64
    assert label["masks"].shape == (0, 32, 32)


def test_rows_of_a_data_set_are_annotations_too(processor):
    objects = {"id": [1, 2], "bbox": [[1, 2, 30, 40], [5, 5, 9, 9]], "category": [0, 2], "area": [99.0, None]}
    row = {"image_id": np.int64(7), "width": 64, "height": 64, "objects": {**objects, "iscrowd": [False, False]}}
    coco = annotation([1, 2, 30, 40], [5, 5, 9, 9])
    coco["annotations"][0].update(category_id=0, area=99)
    coco["annotations"][1].update(category_id=2)
    image = random_image(64, 64)
    ours, theirs = (processor(image, target, return_tensors="pt")["labels"][0] for target in (row, coco))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    row["objects"]["category"] = [0]
    with pytest.raises(ValueError, match=r"image_id 7.*differ in length"):
        processor(image, row)


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([float("nan"), 1, 5, 5], "not finite"),
        ([1, 1, float("inf"), 5], "not finite"),
        ([1, 1, -5, 5], "negative size"),
        ([1, 1, 5, 0], "no area"),
        ([64, 1, 5, 5], "outside the image"),
        ([-9, 1, 5, 5], "outside the image"),
        ([60, 1, 6, 5], "partly outside the image"),
    ],
)
def test_a_bad_box_is_an_error_or_counted(processor, bbox, reason):
    image, target = random_image(64, 64), annotation([2, 2, 9, 9], bbox, [3, 3, 9, 9], image_id=41)
    with pytest.raises(ValueError, match=rf"image_id 41.*object 1: box \[.*of a 64 x 64.*{reason}.*on_bad_box='drop'"):
        processor(image, target, return_tensors="pt")
    with pytest.warns(UserWarning, match=rf"1 dropped \({reason}: 1\).*image_id 41\): object 1"):
        label = processor(image, target, return_tensors="pt", on_bad_box="drop")["labels"][0]
    assert label["boxes"].shape == (2, 4)
    assert label["boxes"].isfinite().all()


def test_clip_keeps_what_is_left_of_a_box(processor):
    with pytest.warns(UserWarning, match="1 clipped"):
        label = processor(random_image(64, 64), annotation([32, 0, float("inf"), 64]), on_bad_box="clip")["labels"][0]
    assert label["boxes"].tolist() == [[0.75, 0.5, 0.5, 1.0]]
    with pytest.warns(UserWarning, match=r"Of 2 boxes 2 dropped"):
        label = processor(random_image(64, 64), annotation([70, 0, 5, 5], [1, 1, 0, 9]), on_bad_box="clip")["labels"][0]
    assert label["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (one_object(category_id=1), ValueError, "image_id 3.*object 0 needs 'bbox' and 'category_id'; got category_id"),
        (one_object(bbox=[1, 1, 2, 2]), ValueError, "image_id 3.*object 0 needs 'bbox' and 'category_id'; got bbox"),
        (annotation([1, 2, 3]), ValueError, "expected four numbers"),
        (annotation([1, 2, 3, 4], category_id=-1), ValueError, "category_id -1 is negative"),
        (annotation([1, 2, 3, 4], category_id="cat"), TypeError, "label2id"),
        (annotation([1, 2, 3, 4], category_id=1.5), TypeError, "must be one integer"),
        (annotation([1, 2, 3, 4], area=float("nan")), ValueError, "area nan"),
        ({"annotations": []}, ValueError, r"annotations\[0\]: no 'image_id'"),
        ({"image_id": "a.jpg", "annotations": []}, TypeError, "must be one integer"),
        ({"image_id": 3}, ValueError, "image_id 3.*'objects'.*or 'annotations'.*got image_id"),
        (annotation([1, 2, 3, 4], area="x"), ValueError, "image_id 7.*object 0: area 'x'; expected squared pixels"),
        (annotation([1, 2, 3, 4], area=-1), ValueError, "image_id 7.*object 0: area -1"),
        (annotation([1, 2, 3, 4], category_id=2**70), ValueError, "image_id 7.*object 0: category_id.*64 bits"),
        (annotation([1, 2, 3, 4], iscrowd="0"), ValueError, "image_id 7.*object 0: iscrowd '0'; expected 0 or 1"),
        (annotation([1, 2, 3, "4"]), ValueError, "image_id 7.*object 0: bbox .*four numbers"),
        (annotation(image_id=2**70), ValueError, r"annotations\[0\]: 'image_id' 1180.* does not fit in 64 bits"),
        ({"image_id": 3, "segments_info": []}, ValueError, "panoptic"),
        ({"image_id": 3, "annotations": 5}, TypeError, "list of dicts"),
        ({"image_id": 3, "annotations": [5]}, TypeError, "object 0 is int"),
        ([5], TypeError, "expected a dict"),
        ([annotation(), annotation()], ValueError, "1 images but 2 annotations"),
    ],
)  # fmt: skip
def test_a_bad_annotation_is_named(processor, target, error, message):
    with pytest.raises(error, match=message):
        processor(random_image(64, 64), target, return_tensors="pt")


def test_compressed_masks_are_read_as_pycocotools_reads_them(processor):
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for rate in (0, 0.02, 0.5, 0.9, 1):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        mask = rng.random((height, width)) < rate
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        target = annotation([0, 0, width, height])
        for counts in (rle["counts"], rle["counts"].decode()):
            target["annotations"][0]["segmentation"] = {"size": [height, width], "counts": counts}
            label = processor(random_image(height, width), target, do_resize=False, return_segmentation_masks=True)
            assert np.array_equal(label["labels"][0]["masks"][0], mask)


def test_masks_follow_their_image(processor):
    square = [[16, 16, 48, 16, 48, 48, 16, 48]]
    rle = {"size": [64, 64], "counts": [64 * 32, 64 * 32]}  # column by column: the right half
    target = annotation([16, 16, 32, 32], [32, 0, 32, 64])
    target["annotations"][0]["segmentation"], target["annotations"][1]["segmentation"] = square, rle
    encoded = processor(
        [random_image(64, 64), random_image(64, 128)],
        [target, annotation()],
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    masks = encoded["labels"][0]["masks"]
    assert masks.dtype == torch.uint8
    assert masks.shape == (2, 32, 32)  # of the image; the padding beside it is no part of a label
    expected = torch.zeros(2, 32, 32, dtype=torch.uint8)
    expected[0, 8:24, 8:24] = expected[1, :, 16:32] = 1
    assert torch.equal(masks, expected)
    target["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"image_id 7.*object 0: polygon \[1, 2, 3, 4\]"):
        processor(random_image(64, 64), target, return_segmentation_masks=True)
    target["annotations"][0]["segmentation"] = [16, 16, 48, 16, 48, 48]
    with pytest.raises(ValueError, match=r"image_id 7.*object 0: polygon 16; .*a list in the list of polygons"):
        processor(random_image(64, 64), target, return_segmentation_masks=True)
    for counts in ([10, 20], [5000], [-1, 4097], ["a"], "garbage!!", b"\xff\xfe", "", None, [2**70]):
        target["annotations"][0]["segmentation"] = {"size": [64, 64], "counts": counts}
        with pytest.raises(ValueError, match=r"image_id 7.*object 0: the run-length encoding .* cannot be decoded"):
            processor(random_image(64, 64), target, return_segmentation_masks=True)
    target["annotations"][0]["segmentation"] = {"size": [5, 5], "counts": [25]}
    with pytest.raises(ValueError, match=r"size \[5, 5\], its image \[64, 64\]"):
        processor(random_image(64, 64), target, return_segmentation_masks=True)


def test_panoptic_annotations_are_read_with_their_png(processor, tmp_path):
    ids = np.zeros((64, 64), dtype=np.int64)
    ids[8:40, 16:], ids[40:] = 300, 65536 * 7
    colours = np.stack((ids % 256, ids // 256 % 256, ids // 65536), axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    segments = [
        {"id": 300, "category_id": 5},
        {"id": 65536 * 7, "category_id": 2, "bbox": [0, 40, 64, 24], "area": 1536},
    ]
    target = {"image_id": 7, "file_name": "a.png", "segments_info": [*segments, {**segments[0], "iscrowd": 1}]}
    label = processor(random_image(64, 64), target, masks_path=tmp_path)["labels"][0]
    assert label["class_labels"].tolist() == [5, 2]
    assert label["boxes"].tolist() == [[40 / 64, 24 / 64, 48 / 64, 32 / 64], [0.5, 52 / 64, 1, 24 / 64]]
    assert label["masks"].tolist() == [(ids[::2, ::2] == number).astype(int).tolist() for number in (300, 65536 * 7)]
    options = {"masks_path": tmp_path, "return_segmentation_masks": False}
    assert "masks" not in processor(random_image(64, 64), target, **options)["labels"][0]
    for change, message in (({"file_name": "b.png"}, "no such PNG"), ({"file_name": None}, "needs 'file_name'"),
                            ({"file_name": "../a.png"}, "leaves the folder masks_path"),
                            ({"segments_info": [{"category_id": 1}]}, "segment 0 lacks id")):  # fmt: skip
        with pytest.raises(ValueError, match=f"image_id 7.*{message}"):
            processor(random_image(64, 64), {**target, **change}, masks_path=tmp_path)


# --- settings and files ---------------------------------------------------------------------------------------------


def test_an_unknown_argument_is_named_with_its_neighbours(processor):
    with pytest.raises(TypeError, match=r"'do_resise' \(did you mean do_resize"):
        DetrImageProcessor(do_resise=False)
    with pytest.raises(TypeError, match=r"'anotations' \(did you mean annotations"):
        processor(random_image(32, 32), anotations=[])
    with pytest.raises(TypeError, match="did you mean pad_size"):
        DetrImageProcessor.from_dict({}, padsize=3)
    assert DetrImageProcessor.from_dict({}, foo=3, return_unused_kwargs=True)[1] == {"foo": 3}


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 800}}, {"size": {"height": 5}}, {"size": "big"}, {"size": True}, {"size": 0},
        {"pad_size": {"w": 3}}, {"pad_size": -1}, {"image_std": [1, 0, 1]}, {"image_mean": [float("nan")]},
        {"size": {"shortest_edge": 10, "longest_edge": 9}}, {"size": 1334},
        {"rescale_factor": 0}, {"resample": 9}, {"on_bad_box": "ignore"}, {"format": "voc"}, {"do_pad": "yes"},
    ],
)  # fmt: skip
def test_an_impossible_setting_is_refused_at_once_and_in_a_call(processor, settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        DetrImageProcessor(**settings)
    with pytest.raises(ValueError, match=name):
        processor(random_image(32, 32), **settings)


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"size": {"height": np.int64(30), "width": np.uint8(20)}}, {"size": {"height": 30, "width": 20}}),
        ({"size": {"shortest_edge": np.int32(30), "longest_edge": torch.tensor(60)}},
         {"size": {"shortest_edge": 30, "longest_edge": 60}}),
        ({"size": np.int64(30), "max_size": np.int16(60)}, {"size": {"shortest_edge": 30, "longest_edge": 60}}),
        ({"size": np.array([30, 20])}, {"size": {"height": 30, "width": 20}}),
        ({"size": (np.int64(30), np.int64(20)), "pad_size": np.int64(70)},
         {"size": {"height": 30, "width": 20}, "pad_size": {"height": 70, "width": 70}}),
        ({"resample": np.int64(3), "do_pad": np.bool_(False), "rescale_factor": np.float32(0.5)},
         {"resample": 3, "do_pad": False, "rescale_factor": 0.5}),
        ({"image_mean": np.array([0.5, 0.25, 0.5], dtype=np.float32), "image_std": np.float64(0.5)},
         {"image_mean": [0.5, 0.25, 0.5], "image_std": [0.5]}),
    ],
)  # fmt: skip
def test_numbers_of_any_kind_are_settings_and_are_written_as_plain_ones(settings, plain, tmp_path):
    processor = DetrImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in plain} == plain
    expected = DetrImageProcessor(**plain)(random_image(32, 48), return_tensors="pt").pixel_values
    settings.pop("max_size", None)
    given = settings if "size" not in plain or np.ndim(settings["size"]) else {**settings, "size": plain["size"]}
    for values in (
        processor(random_image(32, 48), return_tensors="pt"),
        DetrImageProcessor()(random_image(32, 48), return_tensors="pt", **given),
    ):
        assert torch.equal(values.pixel_values, expected)


@pytest.mark.parametrize("size", [{"height": 30.0, "width": 20}, {"height": np.float64(30), "width": 20},
                                  {"height": np.True_, "width": 20}, np.array([30.5, 20]), np.arange(3)])  # fmt: skip
def test_what_is_no_whole_number_of_pixels_is_refused(size):
    with pytest.raises(ValueError, match="size"):
        DetrImageProcessor(size=size)


def test_a_longest_edge_below_the_shortest_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"longest_edge 9 is below shortest_edge 10.*longest_edge of 10 or more.*17"):
        DetrImageProcessor(size={"shortest_edge": 10, "longest_edge": 9})
    with pytest.raises(ValueError, match=r"longest_edge 1333 is below shortest_edge 2000.*max_size"):
        DetrImageProcessor.from_dict({}, size=2000)
    with pytest.raises(ValueError, match="longest_edge 600 is below shortest_edge 800"):
        DetrImageProcessor.from_dict({}, max_size=600)
    assert DetrImageProcessor(size=2000, max_size=2000).size == {"shortest_edge": 2000, "longest_edge": 2000}


@pytest.mark.parametrize("content", [{"size": 48, "max_size": 40}, {"size": {"shortest_edge": 48, "longest_edge": 40}}])
def test_a_file_whose_longest_edge_is_below_the_shortest_gives_stocks_images_with_a_warning(content, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="longest_edge is below shortest_edge; read as .*40"):
        processor = DetrImageProcessor.from_pretrained(tmp_path)
    stock = StockProcessor(size={"shortest_edge": 48, "longest_edge": 40})
    for size_hw in ((40, 40), (100, 30), (31, 77), (47, 48)):
        shapes = [one(random_image(*size_hw), return_tensors="pt").pixel_values.shape for one in (processor, stock)]
        assert shapes[0] == shapes[1], size_hw


def test_a_call_overrides_and_forgets(processor):
    assert processor(random_image(32, 48), size=(20, 20), return_tensors="pt").pixel_values.shape[-2:] == (20, 20)
    assert processor.size == SMALL["size"]
    processor.size = {"height": 24, "width": 24}
    assert processor(random_image(32, 48), return_tensors="pt").pixel_values.shape[-2:] == (24, 24)
    raw = processor(random_image(24, 24), do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    assert torch.equal(raw[0], torch.from_numpy(np.array(random_image(24, 24))).permute(2, 0, 1).float())


@pytest.mark.parametrize(
    ("name", "size", "pad_size", "shape"),
    [
        ("preprocessor_2021", {"shortest_edge": 800, "longest_edge": 1333}, None, (800, 1066)),
        ("preprocessor_2023", {"shortest_edge": 800, "longest_edge": 1333}, None, (800, 1066)),
        ("preprocessor_2024_square", {"max_height": 512, "max_width": 512}, {"height": 512, "width": 512}, (512, 512)),
    ],
)
def test_files_of_every_generation_load(name, size, pad_size, shape, tmp_path, recwarn):
    if not HUB_SAMPLES.is_dir():
        pytest.skip("needs the Hub's sample files in a folder `shared` beside the repository")
    (tmp_path / "preprocessor_config.json").write_text((HUB_SAMPLES / f"{name}.json").read_text())
    processor = DetrImageProcessor.from_pretrained(tmp_path)
    assert not [w for w in recwarn.list if "settings" in str(w.message)]
    assert processor.size == size
    assert processor.pad_size == pad_size
    assert processor.do_pad
    assert processor.do_convert_annotations
    assert processor(random_image(480, 640), return_tensors="pt").pixel_values.shape[-2:] == shape


def test_old_names_are_understood():
    processor = DetrImageProcessor.from_dict({**SMALL, "pad_and_return_pixel_mask": True})
    assert processor.do_pad
    processor = DetrImageProcessor.from_dict(SMALL, size=42, max_size=84, pad_and_return_pixel_mask=False)
    assert processor.size == {"shortest_edge": 42, "longest_edge": 84}
    assert not processor.do_pad
    assert DetrImageProcessor.from_dict(SMALL, max_size=50).size == {"shortest_edge": 32, "longest_edge": 50}
    assert DetrImageProcessor.from_dict({"do_normalize": False}).do_convert_annotations is False


def test_a_strange_key_of_a_file_is_kept_with_a_warning(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, "sharpen": 3}))
    with pytest.warns(UserWarning, match="sharpen"):
        processor = DetrImageProcessor.from_pretrained(tmp_path)
    assert processor.to_dict()["sharpen"] == 3


def test_saving_and_loading_changes_nothing(tmp_path):
    processor = DetrImageProcessor(size=48, image_mean=[0.1, 0.2, 0.3], pad_size=90, on_bad_box="drop", resample=3)
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["image_processor_type"] == "DetrImageProcessor"
    for again in (
        DetrImageProcessor.from_pretrained(tmp_path),
        DetrImageProcessor.from_json_file(tmp_path / "preprocessor_config.json"),
        copy.deepcopy(processor),
        pickle.loads(pickle.dumps(processor)),
    ):
        assert again.to_dict() == processor.to_dict()
    assert processor.model_input_names == ["pixel_values", "pixel_mask"]
    assert "DetrImageProcessor" in repr(processor)
