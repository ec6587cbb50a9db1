"""Training data: planes of the images, and the patches that are cut from them."""

from rskd.data.augmentation import augmented as augmented
from rskd.data.augmentation import cut as cut
from rskd.data.slices import IGNORE as IGNORE
from rskd.data.slices import Slice as Slice
from rskd.data.slices import load_slices as load_slices
from rskd.data.slices import trained_on as trained_on
from rskd.data.views import Batch as Batch
from rskd.data.views import PatchSampler as PatchSampler
from rskd.data.views import sampler_for as sampler_for
