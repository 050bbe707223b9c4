"""What is chosen at a start follows what was measured."""

import pytest
import torch

from mc_core.models import cpu_speed


@pytest.mark.parametrize(("gain", "chosen"), [(4.0, torch.int8), (1.1, torch.float32)])
def test_int8_is_chosen_where_it_is_faster(gain: float, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float layer taking so many times as long decides."""
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("torch has no int8 kernels for this CPU")

    def took(layers: cpu_speed.Layers, x: torch.Tensor) -> float:
        return gain if isinstance(layers[0], torch.nn.Linear) else 1.0

    monkeypatch.setattr(cpu_speed, "seconds", took)
    assert cpu_speed.choose_weights.__wrapped__() == chosen


def test_the_fastest_number_of_threads_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number is tried with torch set to it, and torch's own is as before."""
    before = torch.get_num_threads()
    speed = {8: 1.0, 4: 0.5, 2: 0.7, 1: 0.9}
    monkeypatch.setattr(cpu_speed, "seconds", lambda layers, x: speed[torch.get_num_threads()])
    assert cpu_speed.choose_threads.__wrapped__(torch.float32, 8) == 4
    assert torch.get_num_threads() == before
