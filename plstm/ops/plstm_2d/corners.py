"""Corners of a grid: where a scan starts, as a sign per axis."""

from plstm.checks import check_choice

# Direction of the scan along the row axis and the column axis: 1 forwards, -1 backwards.
SIGNS = {
    "top_left": (1, 1),
    "top_right": (1, -1),
    "bottom_left": (-1, 1),
    "bottom_right": (-1, -1),
}
CORNERS = tuple(SIGNS)


def upward(corner: str) -> bool:
    """Whether the scan from a corner runs backwards along the row axis."""
    return SIGNS[corner][0] < 0


def leftward(corner: str) -> bool:
    """Whether the scan from a corner runs backwards along the column axis."""
    return SIGNS[corner][1] < 0


def scan_orders(corners: tuple[str, ...]) -> int:
    """Two bits per corner for the kernels: whether it scans leftward, whether upward."""
    return sum(
        (leftward(corner) + 2 * upward(corner)) << (2 * n) for n, corner in enumerate(corners)
    )


def check_corners(function: str, corners: tuple[str, ...]) -> None:
    """Raise a ValueError unless the corners are known, distinct and at least one."""
    for corner in corners:
        check_choice(function, "every corner", corner, CORNERS)
    if not corners or len(set(corners)) != len(corners):
        raise ValueError(
            f"{function}: corners must be distinct and at least one, got {tuple(corners)}; "
            f"choose from {', '.join(CORNERS)}"
        )
