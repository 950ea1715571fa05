"""Widths per head from the arguments of a mixer."""

from plstm.checks import check_positive


def head_widths(
    layer: str, dim: int, num_heads: int, qk_dim: int | None = None, v_dim: int | None = None
) -> tuple[int, int]:
    """Key and value width per head; both default to dim / num_heads.

    Raises:
        ValueError: a width is not positive, or num_heads does not divide dim.
    """
    check_positive(layer, dim=dim, num_heads=num_heads)
    if None in (qk_dim, v_dim) and dim % num_heads:
        raise ValueError(
            f"{layer}: dim must be divisible by num_heads, got dim={dim} and "
            f"num_heads={num_heads}; change one of them or pass qk_dim and v_dim"
        )
    qk_dim = dim // num_heads if qk_dim is None else qk_dim
    v_dim = dim // num_heads if v_dim is None else v_dim
    check_positive(layer, qk_dim=qk_dim, v_dim=v_dim)
    return qk_dim, v_dim
