"""3 x 3 convolutions with 2.25 times fewer multiplications, for processors.

Winograd's algorithm F(2 x 2, 3 x 3) (Lavin and Gray, arXiv:1509.09308, section 4.1): each 2 x 2
tile of the output comes from a 4 x 4 tile of the input,

    Y = A^T [(G g G^T) * (B^T d B)] A,

with 16 multiplications for 4 outputs instead of 36. Summed over channels, the products are 16
matrix multiplications. Its constants are 0, 1 and 1/2, so that it is as accurate as a direct
convolution.

Shapes: N images, C and D channels of input and output, H x W pixels, T tiles.
"""

import torch
from torch import Tensor

_TILES = 512  # measured, of 128 to 1024


def winograd_weight(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) kernels g -> (16, C, D), G g G^T of each."""
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    transformed = torch.einsum("ai,dcij,bj->abcd", g, weight, g)
    return transformed.flatten(0, 1).contiguous()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution with stride and padding 1, without gradient.

    Args:
        x: (N, C, H, W), best with channels last in memory.
        weight: (16, C, D), of :func:`winograd_weight`.
        bias: (D,) or None.

    Returns:
        (N, D, H, W), with channels last in memory.
    """
    n, channels, height, width = x.shape
    rows, columns = -(-height // 2), -(-width // 2)  # of tiles
    padded = x.new_empty(n, 2 * rows + 2, 2 * columns + 2, channels)
    padded[:, 0] = padded[:, height + 1 :] = padded[:, :, 0] = padded[:, :, width + 1 :] = 0
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    y = x.new_empty(n, 2 * rows, 2 * columns, weight.shape[-1])
    # As many tiles at a time as stay in the cache: whole images, or some rows of one.
    images_at_once = max(1, _TILES // (rows * columns))
    rows_at_once = max(1, min(rows, _TILES // columns))
    for image in range(0, n, images_at_once):
        images = slice(image, image + images_at_once)
        for row in range(0, rows, rows_at_once):
            last = min(row + rows_at_once, rows)
            _convolve(padded[images, 2 * row : 2 * last + 2], weight, y[images, 2 * row : 2 * last])
    if bias is not None:
        y += bias
    return y[:, :height, :width].permute(0, 3, 1, 2)


def _convolve(x: Tensor, weight: Tensor, y: Tensor) -> None:
    """(N, H + 2, W + 2, C) -> (N, H, W, D), written into `y`; H and W are even."""
    n, height, width, _ = y.shape
    tiles = x.new_empty(4, 4, n, height // 2, width // 2, x.shape[-1])
    along_rows = x.new_empty(4, n, height // 2, width + 2, x.shape[-1])
    _input_transform([x[:, i : i + height - 1 : 2] for i in range(4)], along_rows)
    for i in range(4):
        _input_transform([along_rows[i, :, :, j : j + width - 1 : 2] for j in range(4)], tiles[i])
    products = torch.bmm(tiles.view(16, -1, x.shape[-1]), weight)
    products = products.view(4, 4, n, height // 2, width // 2, -1)
    sums = products.new_empty(2, *products.shape[1:])
    _output_transform(products, sums[0], sums[1])
    for row in range(2):
        _output_transform(sums[row], y[:, row::2, 0::2], y[:, row::2, 1::2])


def _input_transform(d: list[Tensor], out: Tensor) -> None:
    """B^T d for the four entries of `d`."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _output_transform(m: Tensor, first: Tensor, second: Tensor) -> None:
    """A^T m for the four entries of `m`, written into its two entries."""
    torch.add(m[0], m[1], out=first).add_(m[2])
    torch.sub(m[1], m[2], out=second).sub_(m[3])
