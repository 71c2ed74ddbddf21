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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILES = 512  # measured, of 128 to 1024


def winograd_weight(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) kernels g -> (16, C, D), G g G^T of each."""
    g = _kernel_transform(weight)
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
    n, _, height, width = x.shape
    padded = _padded(x, 1)
    y = x.new_empty(n, padded.shape[1] - 2, padded.shape[2] - 2, weight.shape[-1])
    for inputs, outputs in _blocks(padded, y):
        products = torch.bmm(_input_tiles(inputs), weight)
        _sum_outputs(products.view(4, 4, *_tile_grid(outputs), -1), outputs)
    if bias is not None:
        y += bias
    return y[:, :height, :width].permute(0, 3, 1, 2)


def trainable_winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`winograd_conv2d`, of (D, C, 3, 3) kernels and with gradients, once."""
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
    """Of x (N, C, H, W) and of the kernels (D, C, 3, 3), from that of the output (N, D, H, W).

    The input's tiles are computed once more, for they take four times its memory.
    """
    _, _, height, width = x.shape
    transposed = winograd_weight(weight).transpose(1, 2)
    padded, of_y = _padded(x, 1), _padded(gradient, 0)
    of_padded = torch.zeros_like(padded) if for_x else None
    of_transformed = weight.new_zeros(16, weight.shape[1], weight.shape[0])
    for inputs, of_outputs, *of_inputs in _blocks(padded, of_y, of_padded):
        of_products = _output_tiles(of_outputs)
        if for_weight:
            tiles = _input_tiles(inputs).transpose(1, 2)
            torch.baddbmm(of_transformed, tiles, of_products, out=of_transformed)
        if for_x:
            of_tiles = torch.bmm(of_products, transposed)
            _add_inputs(of_tiles.view(4, 4, *_tile_grid(of_outputs), -1), of_inputs[0])
    of_x = of_weight = None
    if of_padded is not None:
        of_x = of_padded[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
    if for_weight:
        g = _kernel_transform(weight)
        of_weight = torch.einsum("ai,abcd,bj->dcij", g, of_transformed.unflatten(0, (4, 4)), g)
    return of_x, of_weight


def _kernel_transform(like: Tensor) -> Tensor:
    """G, (4, 3)."""
    return like.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def _padded(x: Tensor, border: int) -> Tensor:
    """(N, C, H, W) -> (N, H', W', C): H and W rounded up to even, and a border of zeros."""
    n, channels, height, width = x.shape
    bottom, right = height + border, width + border
    padded = x.new_empty(
        n, height + height % 2 + 2 * border, width + width % 2 + 2 * border, channels
    )
    padded[:, :border] = padded[:, bottom:] = padded[:, :, :border] = padded[:, :, right:] = 0
    padded[:, border:bottom, border:right] = x.permute(0, 2, 3, 1)
    return padded


def _blocks(inputs: Tensor, outputs: Tensor, *more_inputs: Tensor | None) -> Iterator[list[Tensor]]:
    """As many tiles at a time as stay in the cache: whole images, or some rows of one.

    Args:
        inputs: (N, H + 2, W + 2, C), H and W even.
        outputs: (N, H, W, D).
        more_inputs: as `inputs`, or None.
    """
    n, rows, columns = _tile_grid(outputs)
    images_at_once = max(1, _TILES // max(rows * columns, 1))
    rows_at_once = max(1, min(rows, _TILES // max(columns, 1)))
    for image in range(0, n, images_at_once):
        images = slice(image, image + images_at_once)
        for row in range(0, rows, rows_at_once):
            last = min(row + rows_at_once, rows)
            block = [inputs[images, 2 * row : 2 * last + 2], outputs[images, 2 * row : 2 * last]]
            block += [x[images, 2 * row : 2 * last + 2] for x in more_inputs if x is not None]
            yield block


def _tile_grid(outputs: Tensor) -> tuple[int, int, int]:
    """Of (N, H, W, D): images, rows and columns of tiles."""
    n, height, width, _ = outputs.shape
    return n, height // 2, width // 2


def _input_tiles(x: Tensor) -> Tensor:
    """B^T d B of every tile: (N, H + 2, W + 2, C) -> (16, T, C)."""
    n, height, width, channels = x.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    along_rows = x.new_empty(4, n, rows, width, channels)
    _input_transform([x[:, i : i + 2 * rows : 2] for i in range(4)], along_rows)
    tiles = x.new_empty(4, 4, n, rows, columns, channels)
    for i in range(4):
        _input_transform([along_rows[i, :, :, j : j + 2 * columns : 2] for j in range(4)], tiles[i])
    return tiles.view(16, -1, channels)


def _sum_outputs(products: Tensor, y: Tensor) -> None:
    """A^T M A of every tile: (4, 4, N, H / 2, W / 2, D), written into `y` (N, H, W, D)."""
    sums = products.new_empty(2, *products.shape[1:])
    _output_transform(products, sums[0], sums[1])
    for row in range(2):
        _output_transform(sums[row], y[:, row::2, 0::2], y[:, row::2, 1::2])


def _output_tiles(y: Tensor) -> Tensor:
    """The transpose of :func:`_sum_outputs`, A Y A^T: (N, H, W, D) -> (16, T, D)."""
    n, rows, columns = _tile_grid(y)
    sums = y.new_empty(2, 4, n, rows, columns, y.shape[-1])
    for row in range(2):
        _transposed_output_transform(y[:, row::2, 0::2], y[:, row::2, 1::2], sums[row])
    products = y.new_empty(4, *sums.shape[1:])
    _transposed_output_transform(sums[0], sums[1], products)
    return products.view(16, -1, y.shape[-1])


def _add_inputs(tiles: Tensor, x: Tensor) -> None:
    """The transpose of :func:`_input_tiles`, B V B^T: (4, 4, N, H / 2, W / 2, C), added to `x`."""
    along_rows = tiles.new_zeros(4, *tiles.shape[2:4], x.shape[2], x.shape[3])
    for i in range(4):
        columns = tiles.shape[4]
        _transposed_input_transform(
            tiles[i], [along_rows[i, :, :, j : j + 2 * columns : 2] for j in range(4)]
        )
    rows = tiles.shape[3]
    _transposed_input_transform(along_rows, [x[:, i : i + 2 * rows : 2] for i in range(4)])


def _input_transform(d: list[Tensor], out: Tensor) -> None:
    """B^T d for the four entries of `d`."""
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _transposed_input_transform(v: Tensor, d: list[Tensor]) -> None:
    """B v for the four entries of `v`, added to those of `d`, some of which are the same memory."""
    d[0].add_(v[0])
    d[1].add_(v[1]).sub_(v[2]).add_(v[3])
    d[2].add_(v[1]).add_(v[2]).sub_(v[0])
    d[3].sub_(v[3])


def _output_transform(m: Tensor, first: Tensor, second: Tensor) -> None:
    """A^T m for the four entries of `m`, written into its two entries."""
    torch.add(m[0], m[1], out=first).add_(m[2])
    torch.sub(m[1], m[2], out=second).sub_(m[3])


def _transposed_output_transform(first: Tensor, second: Tensor, m: Tensor) -> None:
    """A y for the two entries of y, written into the four of `m`."""
    m[0].copy_(first)
    torch.add(first, second, out=m[1])
    torch.sub(first, second, out=m[2])
    torch.neg(second, out=m[3])
