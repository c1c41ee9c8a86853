"""What plans are made of, for Hypothesis."""

import torch
from hypothesis import strategies as st

from adaptive_kv.cache.geometry import Keep
from adaptive_kv.policy import CacheMode

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
lengths = st.integers(0, 700)
keeps = st.builds(Keep, sinks=st.integers(0, 70), recent=st.integers(0, 200))
own_windows = st.one_of(st.none(), st.integers(1, 300))
modes = st.one_of(
    st.sampled_from(["full", "int8", "int4", "disabled"]),
    st.builds("window:{}{}".format, st.integers(1, 400), st.sampled_from(["", "+int8", "+int4"])),
).map(CacheMode)
