"""Where the time goes: the operators of one call by their own time.

python benchmarks/profile_step.py                                  # training step of this package
python benchmarks/profile_step.py inference --package stock
python benchmarks/profile_step.py loss --batch 32 --objects 40 --trace runs/trace.json
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="training", choices=("training", "inference", "loss"))
    parser.add_argument("--package", default="ours", choices=("ours", "stock"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--objects", type=int, default=7, help="of each image")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--rows", type=int, default=25)
    parser.add_argument("--by-shape", action="store_true", help="operators with other shapes in rows of their own")
    parser.add_argument("--trace", type=Path, help="write a trace for chrome://tracing or perfetto.dev")
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers
    from torch.profiler import ProfilerActivity, profile

    from measure import time_once
    from works import make_works

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"batch": args.batch, "height": args.height, "width": args.width}
        sizes |= {"objects": args.objects, "queries": args.queries}
        work = make_works(Path(folder), device, args.package, args.quick, args.bf16, [args.work], **sizes)[args.work]
        for _ in range(2):
            work()
        seconds = median(time_once(work, device) for _ in range(args.calls))  # the profiler takes its share
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with profile(activities=activities, record_shapes=args.by_shape) as profiled:
            for _ in range(args.calls):
                work()
    table = profiled.key_averages(group_by_input_shape=args.by_shape)
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(table.table(sort_by=by, row_limit=args.rows, max_name_column_width=50))
    operators = sum(event.count for event in table if event.key.startswith("aten::")) / args.calls
    print(f"{args.package}, {args.work}, {sizes}: {seconds:.4g} s unprofiled, {operators:,.0f} operators a call")
    if args.trace:
        args.trace.parent.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(args.trace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
