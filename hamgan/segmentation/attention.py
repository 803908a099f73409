"""Self-attention where a head has its Hamburger: what the paper compares with."""

from hamgan import context
from hamgan.segmentation.layers import Conv2D, registered


class _Bread(Conv2D):
    """A 1x1 convolution that is called as one with spectral norm."""

    def call(self, x, training=False):
        del training
        return super().call(x)


@registered
class SelfAttention(context.SelfAttention):
    """SAGAN's self-attention without spectral norm, as the other layers of these networks are;
    called as a Hamburger of theirs, [B, H, W, C] -> [B, H, W, C].

    Args: as `context.SelfAttention`.
    """

    def _conv(self, filters, name, input_shape):
        conv = _Bread(filters, 1, name=name, dtype=self.dtype_policy)
        conv.build(input_shape)
        return conv

    def call(self, x, labels=None, training=False, keys=None, *, initial=None, return_hams=False):
        """As `hamburger.Hamburger.call`: there are no hams; labels, keys and initial have no
        effect.
        """
        del initial
        y = super().call(x, labels, training, keys)
        return (y, {}) if return_hams else y
