"""3 x 3 convolutions with 2.25 times fewer multiplications, for processors.

Winograd's algorithm F(2 x 2, 3 x 3) (Lavin and Gray, arXiv:1509.09308, section 4.1): each 2 x 2
tile of the output comes from a 4 x 4 tile of the input,

    Y = A^T [(G g G^T) * (B^T d B)] A,

with 16 multiplications for 4 outputs instead of 36. Summed over channels, the products are 16
matrix multiplications, and so are those of the gradients, which follow by the chain rule. Its
constants are 0, 1 and 1/2, so that it is as accurate as a direct convolution.

Shapes: N images, C and D channels of input and output, H x W pixels, T tiles.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILES = 512


def winograd_weight(weight: Tensor) -> Tensor:
    """Return (D, C, 3, 3) kernels g -> (16, C, D), G g G^T of each."""
    g = _kernel_transform(weight)
    transformed = torch.einsum("ai,dcij,bj->abcd", g, weight, g)
    return transformed.flatten(0, 1).contiguous()


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 3 x 3 convolution with stride and padding 1, without gradient.

    Args:
        x: (N, C, H, W), best with channels last in memory.
        weight: (16, C, D), of :func:`winograd_weight`.
        bias: (D,) or None.

    Returns:
        (N, D, H, W), with channels last in memory.
    """
    n, _, height, width = x.shape
    result = torch.empty(
        (n, weight.shape[-1], height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    pixels, y = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)
    for block in _blocks(y):
        products = torch.bmm(_input_tiles(_cut_out(pixels, block, border=1)), weight)
        of_image, of_block = block.cut(height, border=0)
        y[block.images, of_image] = _outputs(products, block)[:, of_block, :width]
    if bias is not None:
        y += bias
    return result


def trainable_winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return as :func:`winograd_conv2d`, of (D, C, 3, 3) kernels and with gradients, once."""
    result: Tensor = _WinogradConv2d.apply(x, weight, bias)
    return result


class _WinogradConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return winograd_conv2d(x, winograd_weight(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        of_x, of_weight = _gradients(x, weight, gradient, for_x, for_weight)
        return of_x, of_weight, gradient.sum(dim=(0, 2, 3)) if for_bias else None


def _gradients(
    x: Tensor, weight: Tensor, gradient: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x (N, C, H, W) and of the kernels (D, C, 3, 3).

    The input's tiles are computed again, because they take four times its memory.
    """
    pixels, of_y = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    of_pixels = None
    if for_x:
        of_pixels = of_y.new_zeros(pixels.shape)
        transposed = winograd_weight(weight).transpose(1, 2)
    of_transformed = weight.new_zeros(16, weight.shape[1], weight.shape[0])
    for block in _blocks(of_y):
        of_products = _transposed_outputs(_cut_out(of_y, block, border=0))
        if for_weight:
            tiles = _input_tiles(_cut_out(pixels, block, border=1)).transpose(1, 2)
            torch.baddbmm(of_transformed, tiles, of_products, out=of_transformed)
        if of_pixels is not None:
            of_tiles = torch.bmm(of_products, transposed)
            of_image, of_block = block.cut(x.shape[2], border=1)
            of_inputs = _transposed_input_tiles(of_tiles, block)
            of_pixels[block.images, of_image] += of_inputs[:, of_block, 1 : x.shape[3] + 1]
    of_x = None if of_pixels is None else of_pixels.permute(0, 3, 1, 2)
    of_weight = None
    if for_weight:
        g = _kernel_transform(weight)
        of_weight = torch.einsum("ai,abcd,bj->dcij", g, of_transformed.unflatten(0, (4, 4)), g)
    return of_x, of_weight


def _kernel_transform(like: Tensor) -> Tensor:
    """Return G, (4, 3)."""
    return like.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class _Block(NamedTuple):
    """Neighbouring tiles of some images, as many as stay in the cache."""

    images: slice
    top: int  # pixel
    rows: int  # of tiles
    columns: int

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.images.stop - self.images.start, self.rows, self.columns

    def cut(self, length: int, border: int) -> tuple[slice, slice]:
        """Return rows of an image of `length` rows, and where they are in a block with a border."""
        first, last = self.top - border, min(self.top + 2 * self.rows + border, length)
        return slice(max(first, 0), last), slice(max(-first, 0), last - first)


def _blocks(y: Tensor) -> Iterator[_Block]:
    """Return whole images of (N, H, W, D), or some rows of one."""
    n, height, width, _ = y.shape
    rows, columns = -(-height // 2), -(-width // 2)
    images_at_once = max(1, _TILES // max(rows * columns, 1))
    rows_at_once = max(1, min(rows, _TILES // max(columns, 1)))
    for image in range(0, n, images_at_once):
        images = slice(image, min(image + images_at_once, n))
        for row in range(0, rows, rows_at_once):
            yield _Block(images, 2 * row, min(rows_at_once, rows - row), columns)


def _cut_out(x: Tensor, block: _Block, *, border: int) -> Tensor:
    """Return the pixels of a block of (N, H, W, C), with a border, and zeros beyond the image."""
    n, rows, columns = block.grid
    width = x.shape[2]
    result = x.new_zeros(n, 2 * rows + 2 * border, 2 * columns + 2 * border, x.shape[3])
    of_image, of_block = block.cut(x.shape[1], border)
    result[:, of_block, border : border + width] = x[block.images, of_image]
    return result


def _input_tiles(x: Tensor) -> Tensor:
    """Return B^T d B of every tile: (N, H + 2, W + 2, C) -> (16, T, C)."""
    n, height, width, channels = x.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    along_rows = x.new_empty(4, n, rows, width, channels)
    _input_transform([x[:, i : i + 2 * rows : 2] for i in range(4)], along_rows)
    tiles = x.new_empty(4, 4, n, rows, columns, channels)
    for i in range(4):
        _input_transform([along_rows[i, :, :, j : j + 2 * columns : 2] for j in range(4)], tiles[i])
    return tiles.view(16, -1, channels)


def _transposed_input_tiles(tiles: Tensor, block: _Block) -> Tensor:
    """Return the transpose of :func:`_input_tiles`, B V B^T: (16, T, C) -> (N, H + 2, W + 2, C)."""
    n, rows, columns = block.grid
    tiles = tiles.view(4, 4, n, rows, columns, -1)
    along_rows = tiles.new_zeros(4, n, rows, 2 * columns + 2, tiles.shape[-1])
    for i in range(4):
        _transposed_input_transform(
            tiles[i], [along_rows[i, :, :, j : j + 2 * columns : 2] for j in range(4)]
        )
    x = tiles.new_zeros(n, 2 * rows + 2, 2 * columns + 2, tiles.shape[-1])
    _transposed_input_transform(along_rows, [x[:, i : i + 2 * rows : 2] for i in range(4)])
    return x


def _outputs(products: Tensor, block: _Block) -> Tensor:
    """Return a^T M A of every tile: (16, T, D) -> (N, H, W, D)."""
    n, rows, columns = block.grid
    products = products.view(4, 4, n, rows, columns, -1)
    sums = products.new_empty(2, *products.shape[1:])
    _output_transform(products, sums[0], sums[1])
    y = products.new_empty(n, 2 * rows, 2 * columns, products.shape[-1])
    for row in range(2):
        _output_transform(sums[row], y[:, row::2, 0::2], y[:, row::2, 1::2])
    return y


def _transposed_outputs(y: Tensor) -> Tensor:
    """Return the transpose of :func:`_outputs`, A Y A^T: (N, H, W, D) -> (16, T, D)."""
    n, height, width, channels = y.shape
    sums = y.new_empty(2, 4, n, height // 2, width // 2, channels)
    for row in range(2):
        _transposed_output_transform(y[:, row::2, 0::2], y[:, row::2, 1::2], sums[row])
    products = y.new_empty(4, *sums.shape[1:])
    _transposed_output_transform(sums[0], sums[1], products)
    return products.view(16, -1, channels)


def _input_transform(d: list[Tensor], out: Tensor) -> None:
    """Write B^T d for the four entries of `d` into `out`."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _transposed_input_transform(v: Tensor, d: list[Tensor]) -> None:
    """Add B v for the four entries of `v` to those of `d`, which share memory in part."""
    d[0].add_(v[0])
    d[1].add_(v[1]).sub_(v[2]).add_(v[3])
    d[2].add_(v[1]).add_(v[2]).sub_(v[0])
    d[3].sub_(v[3])


def _output_transform(m: Tensor, first: Tensor, second: Tensor) -> None:
    """Return a^T m for the four entries of `m`, written into its two entries."""
    torch.add(m[0], m[1], out=first).add_(m[2])
    torch.sub(m[1], m[2], out=second).sub_(m[3])


def _transposed_output_transform(first: Tensor, second: Tensor, m: Tensor) -> None:
    """Write A y for the two entries of y into the four of `m`."""
    m[0].copy_(first)
    torch.add(first, second, out=m[1])
    torch.sub(first, second, out=m[2])
    torch.neg(second, out=m[3])
