"""No number in docs/performance.md is typed: it is made from the results."""

import pytest

from report import DOCUMENT, TEMPLATE, case_lines, document, load, read_results, render, save, seconds

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "A Processor, 2 threads",
    "cores": 2,
    "threads": 2,
    "cpu_capability": "AVX512",
    "python": "3.12.0",
    "packages": {"torch": "2.15.0", "timm": None},
    "gemm_gflop_s": {"float32": 100.0, "bfloat16": 200.0},
}


def spread(median, samples=5):
    return {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "samples": samples}


@pytest.fixture
def results():
    case = {
        "title": "inference of something",
        "status": "measured",
        "stamp": {"commit": "abcdef", "time": "2025-01-01T00:00:00+00:00", "load_before": 0.0},
        "first": "ours",
        "left_out": {"original": "no checkout"},
        "notes": "a note.",
        "differences": {"stock": {"largest": 2e-6, "in": "logits", "allowed": 1e-4}},
        "contestants": {
            "ours": {"seconds": spread(1.25), "peak_mib": 800.0},
            "stock": {"seconds": spread(2.0), "peak_mib": 1000.0},
        },
        "ratios": {"stock": {**spread(1.6), "target": 1.5}},
        "floor": {"gflop": 100.0, "dtype": "float32", "seconds": 1.0, "ours_over_floor": 1.25},
    }
    skipped = {"title": "waits", "status": "skipped", "reason": "needs a GPU", "stamp": case["stamp"]}
    return {"program": "run", "environment": ENVIRONMENT, "cases": {"inference": case, "waits": skipped}}


def test_the_table_holds_what_was_measured_and_what_was_not(results):
    text = render("{{tables}}", {"cpu-a": results})
    for number in (
        "1.25 s",
        "2.00 s",
        "**1.60** (1.44-1.76)",
        "1.5 reached",
        "800 / 1,000",
        "2.0e-06",
        "1.25 of 1.00 s",
    ):
        assert number in text
    assert "left out: no checkout" in text
    assert "skipped: needs a GPU" in text
    assert "100 GFLOP/s in float32" in text
    assert "timm" not in text  # not installed


def test_a_missed_target_is_called_missed(results):
    results["cases"]["inference"]["ratios"]["stock"]["median"] = 1.4
    assert "1.5 missed" in render("{{tables}}", {"cpu-a": results})
    assert any("1.5 missed" in line for line in case_lines("inference", results["cases"]["inference"]))


def test_a_place_in_the_text_is_filled_with_the_number(results):
    others = {"cases": {"inference": {"folding": 1.25}}}  # of another program
    text = "{{cpu:inference.ratios.stock.median:.2f}} and {{each_change:inference.folding:.1f}} times"
    assert render(text, {"cpu-a": results, "each_change": others}) == "1.60 and 1.2 times"


@pytest.mark.parametrize("place", ["cpu:inference.ratios.nobody.median:.2f", "cuda:inference.flop:.0f"])
def test_a_place_without_a_number_is_an_error_that_names_it(results, place):
    with pytest.raises(ValueError, match=place.split(":")[1].split(".")[0]):
        render("{{" + place + "}}", {"cpu-a": results})


def test_the_table_of_a_file_whose_script_is_gone_is_kept_with_it():
    kept = {"program": "growth", "table": [["work", "slope"], ["loss", "1.00"]]}
    assert render("{{table:growth}}", {"growth": kept}) == "| work | slope |\n| --- | --- |\n| loss | 1.00 |"


def test_kept_tables_say_what_their_files_measured():
    files = read_results()
    changes, growth = files["each_change_cpu"], files["growth-ours-cpu-amd-epyc-2-threads"]
    ratios = [row["ratio"]["median"] for case in changes["cases"].values() for row in case.values() if "ratio" in row]
    assert [row[3].split("**")[1] for row in changes["table"][1:]] == [f"{ratio:.2f}" for ratio in ratios]
    slopes = [f"{line['slopes']['time']:.2f}" for line in growth["growth"]]
    assert [row[4] for row in growth["table"][1:]] == slopes


def test_seconds_have_three_digits_and_a_unit():
    assert [seconds(value) for value in (123.4, 12.34, 1.234, 0.01234, 1.2e-5)] == [
        "123 s", "12.3 s", "1.23 s", "12.3 ms", "12.0 us",
    ]  # fmt: skip


def test_saving_keeps_what_was_there_until_it_is_done(results, tmp_path):
    path = tmp_path / "cpu.json"
    save(path, results)
    with pytest.raises(TypeError):
        save(path, {"cases": object()})
    assert load(path) == results


def test_the_template_has_a_place_for_the_tables():
    assert "{{tables}}" in TEMPLATE.read_text(encoding="utf-8")


def test_the_document_is_what_the_results_say():
    if not any(content.get("program") == "run" for content in read_results().values()):
        pytest.skip("nothing was measured yet")
    assert DOCUMENT.read_text(encoding="utf-8") == document()
