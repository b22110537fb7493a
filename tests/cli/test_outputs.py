"""Where commands write: one process at a time, and what is left of a full disk."""

import contextlib
import os
import signal

import pytest
from transformers import exporters

from hf_detr import tiny_checkpoint
from hf_detr.cli._outputs import only_writer

from .conftest import hf_detr_here


def child(work) -> int:
    """The id of a process that does the work; its exit code is 1 where that raises ValueError."""
    process = os.fork()
    if process == 0:
        code = 1
        with contextlib.suppress(ValueError):
            work()
            code = 0
        os._exit(code)
    return process


def exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def enter(folder) -> None:
    with only_writer(folder):
        pass


def test_two_processes_never_train_into_one_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    with only_writer(tmp_path / "run"):
        assert exit_code(child(lambda: enter(tmp_path / "run"))) == 1
        words = ["train", tmp_path, "--model", tiny_checkpoint(), "--output", tmp_path / "run"]
        assert hf_detr_here(monkeypatch, *words) == 2
        assert f"--output {tmp_path / 'run'}: another process trains into it" in capsys.readouterr().err
        monkeypatch.setenv("RANK", "1")
        enter(tmp_path / "run")  # another process of the same run
        monkeypatch.delenv("RANK")
    assert exit_code(child(lambda: enter(tmp_path / "run"))) == 0


def test_a_killed_training_leaves_its_folder_free_though_its_workers_live(tmp_path):
    reader, writer = os.pipe()

    def train() -> None:
        with only_writer(tmp_path):
            if os.fork() == 0:  # a data loader's worker
                signal.pause()
            os.write(writer, b"1")
            signal.pause()

    def train_in_a_group() -> None:
        os.setpgid(0, 0)
        train()

    process = child(train_in_a_group)
    try:
        os.read(reader, 1)
        with pytest.raises(ValueError, match="another process"):
            enter(tmp_path)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        enter(tmp_path)
    finally:
        os.killpg(process, signal.SIGKILL)


def test_a_full_disk_is_no_fault_of_the_model(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):  # as onnx says it
        raise OSError("2304 requested and 0 written")

    monkeypatch.setattr(exporters.ExportedModel, "save_pretrained", full)
    assert hf_detr_here(monkeypatch, "export", tiny_checkpoint(), "--output", tmp_path / "out") == 2
    assert "onnx could not be written (2304 requested and 0 written); free some space" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
