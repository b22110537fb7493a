"""Contestants with a teacher."""

from convergence.one_run import teach
from hf_detr import DetrImageProcessor
from hf_detr.training.teacher import Lessons
from tests.small_models import images, small_model


def test_a_teacher_is_asked_once_of_an_image_as_it_stands_and_once_of_it_mirrored(tmp_path, monkeypatch):
    model = small_model()
    model.save_pretrained(tmp_path)
    processor = DetrImageProcessor(size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    lessons = Lessons(str(tmp_path), model.config, processor)
    forward, asked = lessons.teacher.model.forward, []

    def counted(pixel_values, **others):
        asked.append(len(pixel_values))
        return forward(pixel_values, **others)

    monkeypatch.setattr(lessons.teacher.model, "forward", counted)
    pixels, _ = images((64, 64), (64, 64))
    told, labels = {}, []
    for keys in ([(0, False), (1, False)], [(1, False), (0, True)], [(0, True), (1, False)]):
        labels.append([{}, {}])
        teach(lessons, told, keys, {"pixel_values": pixels, "labels": labels[-1]})
    assert asked == [2, 1]
    for first, again in ((labels[0][1], labels[2][1]), (labels[1][1], labels[2][0])):
        assert first.keys() == again.keys() == {"teacher_probabilities", "teacher_boxes", "teacher_queries"}
        assert all(again[name] is value for name, value in first.items())
