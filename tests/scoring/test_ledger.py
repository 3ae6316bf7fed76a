import numpy as np
import pytest
import torch

from ns_data import ScoreLedger


def filled():
    ledger = ScoreLedger(6)
    ledger.update(torch.tensor([0, 1, 1, 3]), torch.tensor([0.5, 0.2, 0.4, 0.1]), torch.tensor([0, 2, 2, 0]), epoch=0)
    ledger.update(torch.tensor([0, 3]), torch.tensor([0.25, 0.3]), torch.tensor([0, 0]), epoch=4)
    return ledger


def test_means_and_repeated_ids():
    ledger = filled()
    np.testing.assert_allclose(ledger.mean_by_sample(), [0.375, 0.3, np.nan, 0.2, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(ledger.mean_by_class(), [(0.5 + 0.25 + 0.1 + 0.3) / 4, np.nan, 0.3], rtol=1e-6)
    np.testing.assert_allclose(ledger.last_by_sample(), np.float32([0.25, 0.4, np.nan, 0.3, np.nan, np.nan]))
    assert ledger.labels().tolist() == [0, 2, -1, 0, -1, -1]


def test_a_nan_score_is_no_score():
    ledger = filled()
    nan = float("nan")
    ledger.update(torch.tensor([0, 5, 1, 1]), torch.tensor([nan, nan, 0.9, nan]), torch.tensor([7, 7, 2, 7]), epoch=9)
    assert ledger.mean_by_sample()[[0, 1]].tolist() == pytest.approx([0.375, 0.5])
    assert ledger.last(torch.tensor([[0, 1], [3, 5]])).tolist() == [
        pytest.approx([0.25, 0.9]),
        pytest.approx([0.3, nan], nan_ok=True),
    ]
    assert ledger.labels().tolist() == [0, 2, -1, 0, -1, -1]
    assert ledger.state_dict()["epoch"].tolist() == [4, 9, -1, 4, -1, -1]


def test_of_a_repeated_id_the_last_score_stays_whatever_the_order_of_writing():
    ids = torch.randint(50, (4000,), generator=torch.Generator().manual_seed(0))
    ledger = ScoreLedger(50)
    ledger.update(ids, torch.arange(4000.0), ids, epoch=0)
    expected = {i: place for place, i in enumerate(ids.tolist())}
    assert ledger.last_by_sample().tolist() == [expected[i] for i in range(50)]


def test_of_soft_labels_the_likeliest_class_is_kept_and_an_empty_batch_is_nothing():
    ledger = ScoreLedger(2)
    ledger.update(torch.tensor([1]), torch.tensor([0.5]), torch.tensor([[0.1, 0.2, 0.7]]), epoch=0)
    ledger.update(torch.tensor([], dtype=torch.int64), torch.tensor([]), torch.tensor([], dtype=torch.int64), epoch=1)
    assert ledger.labels().tolist() == [-1, 2]


def test_saves_and_loads(tmp_path):
    path = tmp_path / "scores.npz"
    filled().save(path)
    loaded = ScoreLedger.load(path)
    np.testing.assert_array_equal(loaded.mean_by_sample(), filled().mean_by_sample())
    assert [p.name for p in tmp_path.iterdir()] == ["scores.npz"]
    restored = ScoreLedger(6)
    restored.load_state_dict(filled().state_dict())
    np.testing.assert_array_equal(restored.last_by_sample(), filled().last_by_sample())


def test_other_files_and_states_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not a saved ledger"):
        ScoreLedger.load(tmp_path / "other.npz")
    np.savez(tmp_path / "hostile.npz", count=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        ScoreLedger.load(tmp_path / "hostile.npz")
    with pytest.raises(ValueError, match="of 7 samples"):
        ScoreLedger(7).load_state_dict(filled().state_dict())
    with pytest.raises(ValueError, match="id 6 is out of range for a ledger of 6"):
        filled().update(torch.tensor([6]), torch.tensor([0.1]), torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="id -1 is out of range"):
        filled().update(torch.tensor([-1]), torch.tensor([0.1]), torch.tensor([0]), 0)
