"""A training run is pinned, loss by loss: a change that moves training does not pass unseen."""

import json

import pytest

from .golden_run import FILE, KINDS, STEPS, trajectory


@pytest.mark.parametrize("kind", KINDS)
def test_fifty_steps_have_the_losses_they_had(kind):
    expected = json.loads(FILE.read_text())[kind]
    assert len(expected) == STEPS
    assert sum(expected[-10:]) < 0.7 * sum(expected[:10])  # it does learn
    assert trajectory(kind) == pytest.approx(expected, rel=1e-6)
