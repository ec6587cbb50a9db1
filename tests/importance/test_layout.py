"""Windows, shifts and dilated grids: the index undoes what timm's own partition does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.maxxvit import grid_partition
from timm.models.swin_transformer import window_partition, window_reverse

from rskd.importance.layout import Layout, dilated_index, grid_of, whole_map, window_index

sides = st.integers(1, 9)
windows = st.integers(1, 4)


@given(h=sides, w=sides, wh=windows, ww=windows, sh=st.integers(0, 3), sw=st.integers(0, 3), data=st.integers(0, 2**31))
def test_unpartition_of_partition_is_identity(h, w, wh, ww, sh, sw, data):
    tokens = torch.rand(2, h, w, 1, generator=torch.Generator().manual_seed(data)) + 1
    shifted = torch.roll(tokens, (-sh, -sw), (1, 2))
    padded = torch.nn.functional.pad(shifted, (0, 0, 0, -w % ww, 0, -h % wh))
    parts = window_partition(padded, (wh, ww)).view(-1, 1, wh * ww)
    layout = Layout((h, w), window_index((h, w), (wh, ww), (sh, sw)))
    assert torch.equal(layout.restore(parts), tokens.flatten(1).unsqueeze(1))


def test_equals_window_reverse_of_timm_with_a_shift():
    scores = torch.rand(2 * 16, 49)
    expected = torch.roll(window_reverse(scores.view(-1, 7, 7, 1), (7, 7), 28, 28), (3, 3), (1, 2))
    layout = Layout((28, 28), window_index((28, 28), (7, 7), (3, 3)))
    assert torch.equal(layout.restore(scores.unsqueeze(1)).view(2, 28, 28, 1), expected)


def test_equals_grid_partition_of_maxvit():
    tokens = torch.rand(2, 8, 12, 1)
    parts = grid_partition(tokens, [2, 3]).view(-1, 1, 6)
    assert torch.equal(Layout((8, 12), dilated_index((8, 12), (2, 3))).restore(parts), tokens.flatten(1).unsqueeze(1))


def test_prefix_tokens_are_dropped():
    layout = whole_map((2, 3), prefix=2)
    assert layout.restore(torch.arange(8.0).view(1, 1, 8)).flatten().tolist() == [2, 3, 4, 5, 6, 7]
    assert layout.windows is None
    assert layout.query_weights is None


def test_padded_queries_do_not_count():
    layout = Layout((1, 3), window_index((1, 3), (1, 2)))
    assert layout.query_weights.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert layout.windows.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("tokens", "image", "grid"),
    [
        (196, (224, 224), (14, 14)),
        (1024, (512, 512), (32, 32)),
        (32 * 20, (512, 320), (32, 20)),
        (16 * 21, (256, 341), (16, 21)),
        (17, (224, 224), None),
        (48, (224, 224), None),
        (1, (224, 224), (1, 1)),
    ],
)
def test_grid_follows_the_image(tokens, image, grid):
    assert grid_of(tokens, image) == grid
