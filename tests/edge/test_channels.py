from __future__ import annotations

import numpy as np
import pytest

from orcawatch.channels import chosen_channels, select
from orcawatch.errors import AudioError, InputError
from orcawatch.records import AudioBlock


def test_all_channels_by_default() -> None:
    assert chosen_channels(None, 3) == (0, 1, 2)


def test_selected_columns_in_the_order_asked() -> None:
    samples = np.arange(12, dtype=np.float32).reshape(3, 4)
    block = select(AudioBlock(samples, 7), chosen_channels([2, 0], 4))
    assert block.start_sample == 7 and block.samples.flags.c_contiguous
    np.testing.assert_array_equal(block.samples, [[2, 0], [6, 4], [10, 8]])


@pytest.mark.parametrize(
    "channels, text", [([-1], "from 0"), ([1, 1], "each channel once"), ([], "least one"), ([9, 9], "once")]
)
def test_list_that_is_wrong_in_itself_is_refused(channels: list[int], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        chosen_channels(channels, 4)
    assert not isinstance(caught.value, AudioError)


def test_channel_that_a_source_lacks_is_the_sources_fault() -> None:
    with pytest.raises(AudioError, match=r"0 to 3 \(the source has 4\), not \[4, 9\]"):
        chosen_channels([0, 4, 9], 4)
