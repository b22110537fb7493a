"""Stock transformers' DetrImageProcessor, side by side: the same where it is right, and files both can read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_detr.image_processing.settings import resized_hw
from hf_detr.image_processing_detr import DetrImageProcessor

Stock = transformers.DetrImageProcessor
SIZES = [
    {"shortest_edge": 48, "longest_edge": 80},
    {"height": 40, "width": 56},
    {"max_height": 64, "max_width": 50},
]


def random_image(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def random_annotation(image, image_id, count=5):
    rng = np.random.default_rng(image_id)
    objects = []
    for _ in range(count):
        x, y = rng.random(2) * [image.width * 0.5, image.height * 0.5]
        w, h = (rng.random(2) * 0.49 + 0.01) * [image.width, image.height]
        bbox = [float(v) for v in (x, y, w, h)]
        objects.append({"bbox": bbox, "category_id": int(rng.integers(9)), "area": float(w * h), "iscrowd": 0})
    objects[-1]["iscrowd"] = 1
    return {"image_id": image_id, "annotations": objects}


@pytest.fixture(scope="module")
def images():
    return [random_image(h, w, seed) for seed, (h, w) in enumerate([(97, 131), (131, 97), (64, 64), (30, 200), (1, 1)])]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(size))
@pytest.mark.parametrize(
    "more", [{}, {"pad_size": {"height": 90, "width": 100}}, {"resample": 3}, {"do_normalize": False}]
)
def test_pixels_and_mask_are_stocks(images, size, more):
    settings = {"size": size, **more}
    ours, stock = DetrImageProcessor(**settings), Stock(**settings)
    for batch in ([image] for image in images), (images,):
        for several in batch:
            got, expected = ours(several, return_tensors="pt"), stock(several, return_tensors="pt")
            assert torch.equal(got["pixel_values"], expected["pixel_values"])
            assert torch.equal(got["pixel_mask"], expected["pixel_mask"])
            assert got["pixel_mask"].dtype == expected["pixel_mask"].dtype


def test_arrays_tensors_and_floats_are_stocks(images):
    ours, stock = DetrImageProcessor(size=SIZES[0]), Stock(size=SIZES[0])
    array = np.array(images[0])
    for image in (array, array.astype(np.float32), torch.from_numpy(array).permute(2, 0, 1)):
        got, expected = ours(image, return_tensors="pt"), stock(image, return_tensors="pt")
        assert torch.allclose(got["pixel_values"], expected["pixel_values"], atol=1e-5)


def test_resized_shapes_are_stocks_for_any_image():
    rng = np.random.default_rng(0)
    for size in ({"shortest_edge": 800, "longest_edge": 1333}, {"shortest_edge": 37, "longest_edge": 53}, SIZES[2]):
        stock = Stock(size=size, do_normalize=False, do_rescale=False)
        for _ in range(40):
            h, w = (int(v) for v in rng.integers(40, 900, 2))
            image = torch.zeros((1, h, w), dtype=torch.uint8)
            assert resized_hw((h, w), size) == tuple(stock.resize(image, stock.size, resample=0).shape[-2:]), (h, w)


@pytest.mark.parametrize("convert", [True, False])
def test_labels_of_an_image_alone_are_stocks(images, convert):
    ours, stock = (c(size=SIZES[0], do_convert_annotations=convert) for c in (DetrImageProcessor, Stock))
    for i, image in enumerate(images[:4]):
        target = random_annotation(image, i)
        got, expected = (p(image, target, return_tensors="pt")["labels"][0] for p in (ours, stock))
        assert set(got) == set(expected)
        for name in expected:
            assert got[name].dtype == expected[name].dtype
            assert torch.allclose(got[name], expected[name], rtol=1e-5, atol=1e-6), name


def test_overhang_is_clipped_on_request_as_stock_always_does(images):
    target = random_annotation(images[0], 0)
    for obj in target["annotations"]:
        obj["bbox"][2:] = [images[0].width * 0.7, images[0].height * 0.8]
    expected = Stock(size=SIZES[0])(images[0], target, return_tensors="pt")["labels"][0]["boxes"]
    with pytest.warns(UserWarning, match="clipped to the image"):
        got = DetrImageProcessor(size=SIZES[0], on_bad_box="clip")(images[0], target, return_tensors="pt")["labels"][0]
    assert torch.allclose(got["boxes"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="partly outside the image; correct it"):
        DetrImageProcessor(size=SIZES[0])(images[0], target, return_tensors="pt")


def test_beside_a_wider_image_stock_moves_the_boxes_and_we_do_not(images):
    targets = [random_annotation(image, i) for i, image in enumerate(images[:2])]
    alone = Stock(size=SIZES[0])(images[0], targets[0], return_tensors="pt")["labels"][0]["boxes"]
    ours, stock = (
        c(size=SIZES[0])(images[:2], targets, return_tensors="pt")["labels"][0]["boxes"]
        for c in (DetrImageProcessor, Stock)
    )
    assert torch.allclose(ours, alone, atol=1e-6)
    if torch.allclose(stock, alone, atol=1e-6):
        pytest.fail("stock no longer moves the boxes: say so in the table of differences")


def test_masks_are_stocks(images):
    pytest.importorskip("pycocotools", reason="stock draws its masks with pycocotools")
    target = {"image_id": 1, "annotations": []}
    for x, y in ((10, 10), (50, 30)):
        polygon = [x, y, x + 40.5, y, x + 40.5, y + 50, x, y + 30.25]
        obj = {"bbox": [x, y, 40.5, 50], "category_id": 1, "area": 9.0, "iscrowd": 0, "segmentation": [polygon]}
        target["annotations"].append(obj)
    got, expected = (
        c(size=SIZES[0])(images[0], target, return_segmentation_masks=True, return_tensors="pt")["labels"][0]["masks"]
        for c in (DetrImageProcessor, Stock)
    )
    assert torch.equal(got.bool(), expected.bool())


@pytest.mark.parametrize("sizes", [None, [(480, 640), (33, 900)], torch.tensor([[480, 640], [33, 900]])])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
def test_detections_are_stocks(sizes, threshold):
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        logits=torch.randn(2, 50, 8, generator=generator) * 2, pred_boxes=torch.rand(2, 50, 4, generator=generator)
    )
    got, expected = (
        c().post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        for c in (DetrImageProcessor, Stock)
    )
    assert sum(len(e["scores"]) for e in expected) > 0
    for ours, stock in zip(got, expected, strict=True):
        assert set(ours) == set(stock)
        for name in stock:
            assert ours[name].dtype == stock[name].dtype
            assert torch.allclose(ours[name], stock[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, *({"size": size} for size in SIZES), {"pad_size": {"height": 99, "width": 99}}]
)
def test_files_are_read_by_either_side(images, tmp_path, settings):
    settings = {"size": SIZES[0], "image_mean": [0.1, 0.2, 0.3], "do_convert_annotations": False, **settings}
    DetrImageProcessor(**settings).save_pretrained(tmp_path / "ours")
    Stock(**settings).save_pretrained(tmp_path / "stock")
    by_us = [DetrImageProcessor.from_pretrained(tmp_path / side) for side in ("ours", "stock")]
    by_stock = [Stock.from_pretrained(tmp_path / side) for side in ("ours", "stock")]
    automatic = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert isinstance(automatic, Stock)
    targets = [random_annotation(images[0], 0)]
    expected = by_stock[1](images[:1], targets, return_tensors="pt")
    for reader in (*by_us, by_stock[0], automatic):
        got = reader(images[:1], targets, return_tensors="pt")
        assert torch.equal(got["pixel_values"], expected["pixel_values"])
        assert torch.allclose(got["labels"][0]["boxes"], expected["labels"][0]["boxes"], atol=1e-4)


def test_it_serves_stocks_pipeline(images):
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, backbone=None, use_pretrained_backbone=False, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=5, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(config).eval()
    results = []
    for processor in (DetrImageProcessor(size=SIZES[0]), Stock(size=SIZES[0])):
        pipe = transformers.pipeline("object-detection", model=model, image_processor=processor, device="cpu")
        results.append(pipe(images[0], threshold=0.0))
    assert len(results[0]) == 5
    for ours, stock in zip(*results, strict=True):
        assert ours["box"] == stock["box"]
        assert ours["label"] == stock["label"]
        assert ours["score"] == pytest.approx(stock["score"], abs=1e-5)
