"""Layout: how a competition group of m = R x C images is arranged in one picture."""

from __future__ import annotations

from dataclasses import dataclass

ORDERS = ("column", "row")


@dataclass(frozen=True)
class Layout:
    """R rows and C columns of cells, filled column by column (as the paper's listing does) or row by row.

    >>> Layout.parse("2x2").group_size
    4
    >>> Layout(2, 2).grid()                        # member in each cell
    [[0, 2], [1, 3]]
    >>> Layout(2, 2, order="row").grid()
    [[0, 1], [2, 3]]
    """

    rows: int
    cols: int
    order: str = "column"

    def __post_init__(self) -> None:
        for count in (self.rows, self.cols):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"a layout needs at least one row and one column, got {self.rows!r} x {self.cols!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be 'column' or 'row', got {self.order!r}")

    @classmethod
    def parse(cls, layout: str | Layout, order: str | None = None) -> Layout:
        """Read ``"2x4"`` (2 rows, 4 columns); a ``Layout`` passes through. ``order`` overrides the filling order."""
        if isinstance(layout, Layout):
            return layout if order is None else cls(layout.rows, layout.cols, order)
        rows, cross, cols = str(layout).lower().partition("x")
        if not (cross and rows.strip().isdecimal() and cols.strip().isdecimal()):
            raise ValueError(f"layout {layout!r} is not of the form 'RxC', such as '2x2' or '1x4'")
        return cls(int(rows), int(cols), "column" if order is None else order)

    @property
    def group_size(self) -> int:
        """Members of a group, m = R * C."""
        return self.rows * self.cols

    def grid(self) -> list[list[int]]:
        """The member shown in each cell, as R lists of C."""
        if self.order == "column":
            return [[col * self.rows + row for col in range(self.cols)] for row in range(self.rows)]
        return [[row * self.cols + col for col in range(self.cols)] for row in range(self.rows)]

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"
