import argparse
import json
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

from hf_detr.cli import serve
from hf_detr.cli.main import main

from .conftest import TINY, encoded, served


def post(address: str, content: bytes) -> dict:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body, headers = head + content + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
    with urllib.request.urlopen(urllib.request.Request(f"{address}/detect", body, headers), timeout=200) as answer:
        return json.load(answer)


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("hf_detr.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    assert main(["serve", "--model", str(TINY)]) == 2
    assert 'pip install "hf-detr[serve]"' in capsys.readouterr().err


def test_a_wrong_argument_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    (tmp_path / "file").write_text("x")
    for words, part in [
        (["--model", tmp_path / "nothing"], "no such folder"),
        (["--model", TINY, "--write-space", tmp_path], "not empty"),
        (["--model", TINY, "--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ]:
        assert main(["serve", *map(str, words)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert part in line
    with pytest.raises(SystemExit):
        main(["serve", "--model", str(TINY), "--port", "70000"])


def test_the_page_of_documentation_has_the_options_and_their_defaults():
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    for option, default in re.findall(r"^\| `(--[a-z-]+)` \| (\d+) \|", page, flags=re.MULTILINE):
        assert parser.get_default(option[2:].replace("-", "_")) == int(default), option
    options = {word for action in parser._actions for word in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)) <= options


def test_a_written_space_starts_serves_page_and_endpoint_and_stops_cleanly(tmp_path, scenes, monkeypatch):
    from ..cli.conftest import ENVIRONMENT

    space, monkey = tmp_path / "space", {**ENVIRONMENT, "GRADIO_SERVER_PORT": "0"}
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    assert main(["serve", "--model", str(TINY), "--write-space", str(space), "--threshold", "0.4"]) == 0
    card = (space / "README.md").read_text()
    assert card.startswith("---\n")
    assert "sdk: gradio\n" in card
    assert (space / "requirements.txt").read_text().startswith("hf-detr[serve]==")
    assert {file.name for file in (space / "model").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    with served("app.py", cwd=space, environment=monkey) as (process, address):
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert post(address, encoded(scenes[0]))["images"][0]["detections"]
        with urllib.request.urlopen(address, timeout=200) as page:
            assert b"Threshold, all classes" in page.read()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=200)
        assert (process.returncode, said) == (0, "stopped\n")
