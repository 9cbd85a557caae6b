"""`benchmarks.compression_networks --profile`: where a step with compressed activations spends its time."""

from __future__ import annotations

import pytest

from benchmarks import compression_networks


@pytest.mark.slow
def test_a_profile_says_what_was_saved_and_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    compression_networks.main(["--profile", "resnet14"])
    said = capsys.readouterr().out
    assert "ResNet-14 of examples" in said
    assert "run_backward" in said
    assert "kinds of saved tensors" in said
