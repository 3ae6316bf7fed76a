import pytest

from ns_data import Layout


def test_column_order_is_the_papers():
    assert Layout.parse("2x2").grid() == [[0, 2], [1, 3]]
    assert Layout(2, 2, order="row").grid() == [[0, 1], [2, 3]]
    assert Layout(2, 3).grid() == [[0, 2, 4], [1, 3, 5]]


def test_parse_passes_layouts_through_and_overrides_the_order():
    layout = Layout(1, 4, order="row")
    assert Layout.parse(layout) is layout
    assert Layout.parse(layout, order="column") == Layout(1, 4)
    assert Layout.parse("4X2").group_size == 8
    assert str(Layout.parse("3x1")) == "3x1"


@pytest.mark.parametrize("text", ["2", "2x", "axb", "", "0x2", "-1x2", "2x2x2"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="layout"):
        Layout.parse(text)


def test_unknown_order_is_refused():
    with pytest.raises(ValueError, match="'diagonal'"):
        Layout(2, 2, order="diagonal")
