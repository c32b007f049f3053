"""What a person reads of a run."""

import numpy as np
import pytest

from distai_mpi.train.progress import epoch_line, figure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.25, "0.2500"),
        (-2.30259, "-2.3026"),
        (0.001, "0.0010"),
        (123456.789, "123456.7890"),
        (4.2e-7, "4.2e-07"),
        (2.8000534e299, "2.8e+299"),
        (-1e7, "-1e+07"),
        (np.float32(0.5), "0.5000"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_figures_stay_short(value, text):
    assert figure(value) == text


def test_the_line_of_an_epoch():
    record = {"epoch": 2, "running_loss": 1e300, "test_loss": 3e-9, "test_accuracy": 0.5, "samples_per_second": 1234.5}
    told = "epoch 2/3  loss 1e+300  test loss 3e-09  accuracy 50.00 %  1,234 samples/s"
    assert epoch_line(record, 3) == told
    assert epoch_line(record | {"test_loss": None, "test_accuracy": None}, 3) == (
        "epoch 2/3  loss 1e+300  1,234 samples/s"
    )
