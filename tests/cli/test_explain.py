import json
import re

import hf_detr
from hf_detr.cli.main import main
from hf_detr.data.synthetic.digits import digit_scenes

from .conftest import noise


def detections_of(page: str) -> list:
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["detections"]


def test_what_is_explained_is_what_predict_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = digit_scenes(4, seed=5, split="test")[3]["image"]
    image.save("scene.png")
    tiny = str(hf_detr.tiny_checkpoint())
    assert main(["explain", "scene.png", "--model", tiny, "--point", "96", "0", "--device", "cpu"]) == 0
    assert "written: scene.html" in capsys.readouterr().out
    page = (tmp_path / "scene.html").read_text(encoding="utf-8")
    assert main(["predict", tiny, "scene.png", "--output", "found", "--no-drawings", "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found
    answers = [detection["steps"][-1]["answer"] for detection in detections_of(page)]
    assert answers == [f"{row['category']} {row['score']:.2f}" for row in found]
    assert page.count('class="point"') == 1
    assert "What each query has learnt" not in page


def test_queries_are_drawn_over_the_images_that_are_named(tmp_path, model_dir):
    (tmp_path / "many").mkdir()
    for seed in range(3):
        noise(40 + 8 * seed, 40, seed).save(tmp_path / "many" / f"{seed}.png")
    words = [tmp_path / "many" / "0.png", "--model", model_dir, "-o", tmp_path / "new" / "page.htm", "--threshold", "0"]
    assert main([*map(str, ["explain", *words, "--queries-over", tmp_path / "many"])]) == 0
    page = (tmp_path / "new" / "page.htm").read_text(encoding="utf-8")
    assert "What each query has learnt" in page
    assert len(detections_of(page)) == 9
