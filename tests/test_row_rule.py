import pytest

from shared.engine.row_rule import RowRule


@pytest.mark.parametrize(
    ("counts", "rows", "chunks"),
    [
        ((), 7, (7,)),
        ((2, 3, 4), 3, (3,)),
        ((4, 8, 16, 32), 12, (8, 4)),
        ((4, 8, 16, 32), 2, (4,)),
        ((4, 8, 16, 32), 6, (8,)),
        ((4, 8, 16, 32), 100, (32, 32, 32, 4)),
        (tuple(range(2, 17)), 17, (15, 2)),  # not 16 and a padded 1
        ((16,), 3, (16,)),
    ],
)
def test_rows_are_made_up_of_allowed_counts(
    counts: tuple[int, ...], rows: int, chunks: tuple[int, ...]
) -> None:
    assert RowRule(counts).chunks(rows) == chunks


@pytest.mark.parametrize("counts", [(), (1,), (2, 3, 4), (3, 7), (4, 8, 16, 32), (10,)])
@pytest.mark.parametrize("max_rows", [None, 1, 5, 9])
def test_every_row_has_a_place(counts: tuple[int, ...], max_rows: int | None) -> None:
    for rows in range(1, 200):
        chunks = RowRule(counts).chunks(rows, max_rows)
        assert sum(chunks) >= rows > sum(chunks[:-1])
        assert max_rows is None or max(chunks) <= max_rows
        small_enough = [count for count in counts if max_rows is None or count <= max_rows]
        assert not small_enough or set(chunks) <= set(small_enough)


def test_thousands_of_rows_are_no_problem() -> None:
    assert RowRule((2,)).chunks(9999) == (2,) * 5000
