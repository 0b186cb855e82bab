"""Random limits, and random shapes of steps within them."""

from hypothesis import strategies as st

from tgi.limits import Limits
from tgi.planning.shapes import ShapeLimits
from tgi.protocol import Bucket

limits = st.builds(
    Limits,
    max_total_tokens=st.integers(2, 3000),
    max_batch_prefill_tokens=st.integers(1, 3000),
    max_batch_size=st.integers(1, 40),
    block_size=st.sampled_from([16, 128]),
    window=st.none() | st.integers(1, 1000),
)
spaces = st.builds(
    lambda of, prefixes, blocks: ShapeLimits.from_limits(of, prefixes=prefixes, blocks=blocks),
    limits,
    st.booleans(),
    st.integers(1, 500),
)


@st.composite
def shapes(draw: st.DrawFn, space: ShapeLimits) -> Bucket:
    """A step that the policy must have a bucket for."""
    if draw(st.booleans()):
        tokens = draw(st.integers(1, space.longest_chunk))
        context = draw(st.integers(0, space.context_blocks(tokens)))
        return Bucket(1, tokens, context, prefill=True)
    rows = draw(st.integers(1, space.max_batch_size))
    return Bucket(rows, 1, draw(st.integers(rows, space.decode_blocks(rows))))
