"""Which block of one network answers to a block of another one."""


def matching_block(block: int, depth: int, other: int) -> int:
    """Return the block of a network with `other` blocks that is as deep as `block` (from 0) of one with `depth`.

    Examples
    --------
    >>> [matching_block(block, 3, 12) for block in range(3)]
    [3, 7, 11]
    """
    return max(0, round((block + 1) * other / depth) - 1)
