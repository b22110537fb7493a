"""This package beside stock transformers and the original DETR: one table, and benchmarks/results/<device>.json.

    python benchmarks/run.py                            # everything this machine can do
    python benchmarks/run.py --original /path/to/detr   # a checkout of facebookresearch/detr as well
    python benchmarks/run.py --only inference_fp32 loss_small
    python benchmarks/run.py --quick                    # tiny inputs: does it run? Nothing is written

A case whose outputs differ from ours is printed as failed and not timed. Results are saved after each case; cases that
are not run keep the results they have. Exit code 1 where a case failed.
"""

import argparse
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> int:
    args = _parse(arguments)
    if args.threads:
        # before torch is imported: it starts its threads once
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is built from configurations; nothing may be fetched
    import torch
    import transformers

    from cases import Bench, all_cases, weigh

    cases = {case.name: case for case in all_cases()}
    if args.list:
        print("\n".join(f"{name:<28}{case.title}" for name, case in cases.items()))
        return 0
    if unknown := [name for name in args.only if name not in cases]:
        print(f"--only: no case {', '.join(unknown)}; there are {', '.join(cases)}.", file=sys.stderr)
        return 2
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*(is deprecated|TensorFloat32|Online softmax).*")
    if args.weigh:
        name, contestant = args.weigh
        print(json.dumps(weigh(cases[name], contestant, Bench(device, args.quick, args.checkpoint, args.original))))
        return 0
    with tempfile.TemporaryDirectory(prefix="hf_detr_benchmark_") as folder:
        bench = Bench(device, args.quick, Path(folder), args.original)
        try:
            return _run([cases[name] for name in args.only or cases], bench, args.results)
        except ValueError as error:  # of what was given; errors of cases are in their results
            print(error, file=sys.stderr)
            return 2


def _run(chosen: list, bench, results_folder: Path | None) -> int:
    from cases import run_case
    from contestants import write_checkpoint
    from environment import describe, file_name
    from report import HEADER, case_lines, load, save

    if bench.original_folder is not None:
        _ = bench.original  # a wrong folder is said now, not in every case
    if results_folder is None and not bench.quick:
        results_folder = RESULTS
    path = None if results_folder is None else results_folder / file_name(bench.device)
    environment = describe(bench.device, bench.quick)
    results: dict = {"program": "run", "environment": environment, "cases": {}}
    if path is not None and path.exists():
        earlier = load(path)
        if changed := _other_versions(earlier["environment"], environment):
            raise ValueError(f"{path} holds results of {changed}; remove it, or write elsewhere (--results DIR).")
        results["cases"] = earlier["cases"]
    write_checkpoint(bench.checkpoint, small=bench.quick)
    bench.gemm_gflop_s = gemm = environment["gemm_gflop_s"]
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    print(f"{environment['device_name']}; {environment['cores']} cores, {environment['threads']} threads")
    print(f"python {environment['python']}, {packages}")
    print(f"matrix products: {gemm['float32']:,.0f} GFLOP/s float32, {gemm['bfloat16']:,.0f} GFLOP/s bfloat16\n")
    print(HEADER, flush=True)
    for case in chosen:
        result = results["cases"][case.name] = run_case(case, bench)
        print("\n".join(case_lines(case.name, result)), flush=True)
        if "traceback" in result:
            print(result["traceback"], file=sys.stderr)
        if path is not None:
            save(path, results)
    if path is not None:
        print(f"\nwritten: {path}")
    return 1 if any(results["cases"][case.name]["status"] in ("failed", "error") for case in chosen) else 0


def _other_versions(earlier: dict, now: dict) -> str:
    """The packages of earlier results that are of other versions now: one table has one environment."""
    was, now = ({**environment["packages"], "python": environment["python"]} for environment in (earlier, now))
    return ", ".join(
        f"{name} {number}" for name, number in was.items() if number and now.get(name) not in (None, number)
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="these cases alone")
    parser.add_argument("--list", action="store_true", help="the names of the cases")
    parser.add_argument("--original", type=Path, metavar="DIR", help="a checkout of facebookresearch/detr")
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU; default: all cores")
    parser.add_argument("--quick", action="store_true", help="tiny inputs, two repeats: a smoke test")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where to write; default: benchmarks/results")
    # one contestant's memory in a process of its own
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
