"""The operators as PyTorch sees them: their library, and what the stable ABI cannot hold.

``libsifa_ops.so`` brings the schemas, the argument checks and the CPU kernels, ``libsifa_ops_cuda.so`` the
CUDA kernels. :mod:`.library` loads them, or puts :mod:`sifa.reference` behind the same schemas where there is
no binary; the module of each operator holds its public function and adds shape inference, autograd, autocast
and the FLOP formulas.
"""

from . import attention, library, motion
from .attention import inter_frame_attention
from .motion import motion_offset, motion_saliency

__all__ = ["inter_frame_attention", "motion_offset", "motion_saliency"]

library.load_library({**attention.SCHEMAS, **motion.SCHEMAS}, {**attention.FALLBACKS, **motion.FALLBACKS})
attention.register()
motion.register()
