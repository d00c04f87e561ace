"""Seeds, for engines that take fewer bits than :class:`~anyengine.SamplingParams` has."""

__all__ = ["in_32_bits"]


def in_32_bits(seed: int) -> int:
    """A seed below 2**32, for a generator that looks at the lower 32 bits only: every bit of the given one counts.

    Smaller ones stay as they are. Larger ones are mixed down (splitmix64; Steele, Lea and Flood 2014), so that two that
    differ have the same result by a chance of one in 2**32 only.
    """
    if seed < 2**32:
        return seed
    seed = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    seed = (seed ^ seed >> 27) * 0x94D049BB133111EB % 2**64
    return (seed ^ seed >> 31) % 2**32
