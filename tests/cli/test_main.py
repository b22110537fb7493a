import json
import os
import subprocess
import sys
import time

import pytest

from .conftest import COMMAND, ENVIRONMENT, SOURCE, assert_one_line_and_exit_code_2, hf_detr, write_coco

COMMANDS = ("check", "train", "evaluate", "predict", "convert", "demo", "serve")


def test_help_names_every_command_in_half_a_second():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = hf_detr("--help")
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_tells_what_each_option_does_and_imports_nothing_heavy(command):
    script = f"""
import sys
from hf_detr.cli.main import main
try:
    main([{command!r}, "--help"])
except SystemExit as stop:
    assert not stop.code
heavy = {{"torch", "transformers", "datasets", "matplotlib", "gradio"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: hf-detr {command}" in done.stdout
    assert "SUPPRESS" not in done.stdout
    lines = done.stdout.splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert flags
    for i in flags:  # an option's help is beside it or on the next line
        assert len(lines[i].split("  ")) > 2 or lines[i + 1].startswith(" " * 10), lines[i]


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_a_command_works_without_standard_streams(tmp_path, closed):
    write_coco(tmp_path / "coco")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [*COMMAND, "check", str(tmp_path / "coco"), "--json", str(report)], env=ENVIRONMENT, capture_output=True,
        preexec_fn=lambda: [os.close(number) for number in closed],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(report.read_text())


def test_a_mistyped_command_or_value_is_one_line_and_exit_code_2(tmp_path):
    assert_one_line_and_exit_code_2(hf_detr("predikt", "x"), "invalid choice: 'predikt'")
    assert_one_line_and_exit_code_2(hf_detr("predict", "m", "a.jpg", "--threshold", "50"), "--threshold", "50")
    assert_one_line_and_exit_code_2(
        hf_detr("predict", tmp_path / "nothing", "a.jpg"), str(tmp_path / "nothing"), "no such folder"
    )
    (tmp_path / "config.json").write_text('{"model_type": "yolos"}')
    assert_one_line_and_exit_code_2(hf_detr("evaluate", tmp_path, "data"), "expected model_type 'detr', got 'yolos'")
    (tmp_path / "config.json").write_text("[1]")
    assert_one_line_and_exit_code_2(hf_detr("evaluate", tmp_path, "data"), "config.json: expected a JSON object")
    (tmp_path / "config.json").write_bytes(b"\xff{")
    assert_one_line_and_exit_code_2(hf_detr("evaluate", tmp_path, "data"), "config.json: not a JSON file")
