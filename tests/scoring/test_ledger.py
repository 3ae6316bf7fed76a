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
