import pytest

from ns_data.choose import choose, construct


def test_nearest_name_is_offered():
    with pytest.raises(ValueError, match="did you mean 'focal'"):
        choose({"focal": 1, "poly": 2}, "focl", "loss")
    with pytest.raises(ValueError, match="known are: focal, poly"):
        choose({"focal": 1, "poly": 2}, "zzz", "loss")


def test_unknown_arguments_are_refused_by_name():
    def build(gamma=1.0):
        return gamma

    assert construct({"focal": build}, "focal", "loss", {"gamma": 2.0}) == 2.0
    with pytest.raises(ValueError, match=r"option of loss 'focal' 'gama': did you mean 'gamma'"):
        construct({"focal": build}, "focal", "loss", {"gama": 2.0})


def test_a_missing_required_argument_is_named():
    def build(vocab_size, dim=3):
        return vocab_size * dim

    assert construct({"text": build}, "text", "model", {"vocab_size": 2}) == 6
    with pytest.raises(ValueError, match="model 'text' needs the option 'vocab_size'"):
        construct({"text": build}, "text", "model", {"dim": 2})
