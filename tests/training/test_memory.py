"""Running out of memory, for real where this machine can: torch's CPU allocator refuses what no machine has."""

import pytest
import torch

import train
from ns_data.models import MODELS
from ns_data.models.small_cnn import SmallCNN
from ns_data.training.config import Config, DataConfig
from ns_data.training.distributed import World
from ns_data.training.memory import is_out_of_memory, memory_advice

CPU = torch.device("cpu")
ASKED = "at image_size 16 (it asked for 1152921504606846976 bytes more)"


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (True, f"training with batch_size 64 {ASKED}: try accumulate=2, amp=bf16 or batch_size=32"),
        (False, f"evaluation with eval_batch_size 100 {ASKED}: try eval_batch_size=50"),
    ],
)
def test_a_run_that_does_not_fit_ends_with_one_sentence(tmp_path, monkeypatch, when, message):
    """train.py makes such an error one line and status 1, see test_train.py."""

    class Hungry(SmallCNN):
        def forward(self, images):
            if self.training == when:
                torch.empty(1 << 60, dtype=torch.uint8)
            return super().forward(images)

    monkeypatch.setitem(MODELS, "hungry", Hungry)
    monkeypatch.chdir(tmp_path)
    words = ["model.name=hungry", "data.image_size=16", "eval_batch_size=100", "ns.weighting=none", "device=cpu", "run_dir=run"]
    with pytest.raises(ValueError, match="out of memory") as error:
        train.main(words)
    assert str(error.value) == f"out of memory in a step of {message}"


def said(config, size=1, phase="training", error=None):
    with pytest.raises(ValueError, match="out of memory") as caught, memory_advice(config, World(0, size, CPU), phase):
        raise error or torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
        )
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_would_need_less_fits_the_groups_and_processes():
    assert said(Config(batch_size=1024), 8) == (
        "out of memory in a step of training with batch_size 1024, 128 samples in each of 8 processes "
        "(it asked for 2.50 GiB more): try accumulate=2, amp=bf16 or batch_size=512"
    )
    assert said(Config(batch_size=96, accumulate=2, amp="bf16"), 8).endswith("try batch_size=32")  # 3 groups a process
    assert said(Config(batch_size=8), 2).endswith("try amp=bf16")  # one group a process: nothing smaller is left
    assert said(Config(batch_size=4, amp="bf16")).endswith("try smaller images or a smaller network")
    assert "at image_size 224" in said(Config(data=DataConfig(image_size=224)))
    assert said(Config(eval_batch_size=1), 2, "evaluation").endswith("try smaller images or a smaller network")


def test_other_errors_are_left_alone():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 3.00 GB)"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"), memory_advice(Config(), World(0, 1, CPU), "training"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_full():
    with pytest.raises(ValueError, match=r"it asked for .* more"), memory_advice(Config(), World(0, 1, CPU), "training"):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
